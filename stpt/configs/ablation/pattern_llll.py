# Local attention in every stage.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/pattern_llll.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(name="stpt_llll"))
