# Attention where a mask's probability is 0.5 or more, as in Mask2Former; the paper has 0.15.
# Command:  cd faseg/configs; faseg train --config ade20k/faseg_r50.py --config ablation/threshold_half.py --amp
# Paper:    its tables could not be read. Measured here: not run (needs ADE20K and 8 GPUs).
model = dict(decode_head=dict(decoder=dict(attn_threshold=0.5)))
