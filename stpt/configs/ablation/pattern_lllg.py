# Global attention in the last stage alone.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/pattern_lllg.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(name="stpt_lllg"))
