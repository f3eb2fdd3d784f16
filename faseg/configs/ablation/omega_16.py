# 1 in 16 windows for the high-resolution layers; the paper has 32.
# Command:  cd faseg/configs; faseg train --config ade20k/faseg_r50.py --config ablation/omega_16.py --amp
# Paper:    its tables could not be read. Measured here: not run (needs ADE20K and 8 GPUs).
model = dict(decode_head=dict(decoder=dict(omega=16)))
