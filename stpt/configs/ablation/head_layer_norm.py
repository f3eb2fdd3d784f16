# LayerNorm over channels in the head, which does not mix times as GroupNorm does.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config ablation/head_layer_norm.py --data.root DIR
# Paper:    its ablation numbers could not be read. Measured here: not run (needs THUMOS14 and a GPU).
model = dict(detector=dict(head_norm="ln"))
