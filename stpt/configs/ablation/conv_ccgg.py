# 3D convolutions (UniFormer's local block) in place of local attention.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/conv_ccgg.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(name="stpt_ccgg"))
