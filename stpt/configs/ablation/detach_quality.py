# The quality's IoU target without a gradient; AFSD lets it reach the distances.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/detach_quality.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(loss=dict(detach_quality_target=True))
