# Mask2Former's head: neither DFPQ nor HRCA, sine positions, 9 layers, masks of probability 0.5.
# Command:  cd faseg/configs; faseg train --config ade20k/faseg_r50.py --config ablation/mask2former.py --amp
# Paper:    its tables could not be read. Measured here: not run (needs ADE20K and 8 GPUs).
model = dict(
    decode_head=dict(key_pos="sine", decoder=dict(query_pos="learned", hrca=False, layers=9, attn_threshold=0.5))
)
