# Global attention in every stage, without reduction in the first two: 12.7 times the multiply-accumulates.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/pattern_gggg.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(name="stpt_gggg", checkpoint=True))
