# Dynamic positions of the queries in the high-resolution layers too, as the paper's text has it.
# Command:  cd faseg/configs; faseg train --config ade20k/faseg_r50.py --config ablation/hrca_dynamic_queries.py --amp
# Paper:    its tables could not be read. Measured here: not run (needs ADE20K and 8 GPUs).
model = dict(decode_head=dict(decoder=dict(hrca_query_pos="dfpq")))
