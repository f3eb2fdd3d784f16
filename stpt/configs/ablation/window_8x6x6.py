# Windows of 8x6x6 in both early stages.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/window_8x6x6.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(backbone=dict(name="stpt_window_8x6x6"))
