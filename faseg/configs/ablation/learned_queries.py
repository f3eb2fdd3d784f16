# Without DFPQ: the queries' positions are learned constants, as in Mask2Former.
# Command:  cd faseg/configs; faseg train --config ade20k/faseg_r50.py --config ablation/learned_queries.py --amp
# Paper:    its tables could not be read. Measured here: not run (needs ADE20K and 8 GPUs).
model = dict(decode_head=dict(decoder=dict(query_pos="learned")))
