# Keys and values reduced by dense convolutions in place of depth-wise ones.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/reduction_conv.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(reduction="conv"))
