# Learned positions for the keys.
# Command:  cd faseg/configs; faseg train --config ade20k/faseg_r50.py --config ablation/key_pos_learned.py --amp
# Paper:    its tables could not be read. Measured here: not run (needs ADE20K and 8 GPUs).
model = dict(decode_head=dict(key_pos="learned"))
