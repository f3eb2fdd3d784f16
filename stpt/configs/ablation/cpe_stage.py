# A positional convolution once a stage (CPVT, Twins) in place of one in every block.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/cpe_stage.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(name="stpt_cpe_stage"))
