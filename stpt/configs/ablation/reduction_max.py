# Keys and values reduced by maxima in place of depth-wise convolutions.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/reduction_max.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(reduction="max"))
