# Global attention from the second stage on, without reduction there: 3.3 times the multiply-accumulates.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/pattern_lggg.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(name="stpt_lggg", checkpoint=True))
