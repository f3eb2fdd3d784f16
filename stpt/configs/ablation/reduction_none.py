# Global attention of stage 3 without reduction of keys and values.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/reduction_none.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(reductions=((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))))
