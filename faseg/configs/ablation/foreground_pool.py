# The first positional query from the predicted foreground;
# the released code takes the background.
# Command:  cd faseg/configs; faseg train --config ade20k/faseg_r50.py --config ablation/foreground_pool.py --amp
# Paper:    its tables could not be read. Measured here: not run (needs ADE20K and 8 GPUs).
model = dict(decode_head=dict(decoder=dict(init_pool="foreground")))
