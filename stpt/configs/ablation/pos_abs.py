# Learned positions of space and time (MViT) in place of positional convolutions.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/pos_abs.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(name="stpt_abs"))
