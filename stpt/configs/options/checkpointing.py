# Activation checkpointing by block: the same numbers, less memory, more time.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config options/checkpointing.py --data.root DIR
# Paper:    no such run. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(checkpoint=True))
