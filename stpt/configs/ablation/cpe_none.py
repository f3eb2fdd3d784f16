# No positions at all.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/cpe_none.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(name="stpt_cpe_none"))
