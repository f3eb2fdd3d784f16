# Windows of twice the length in time.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/window_16x6x6.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(windows=((16, 6, 6), (16, 6, 6), (16, 6, 6), (16, 3, 3))))
