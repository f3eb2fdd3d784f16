# No boundary consistency learning: the spliced clips are not looked at.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/no_consistency.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(consistency=0.0)
