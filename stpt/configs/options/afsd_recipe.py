# AFSD's recipe for STPT's network. Whether the paper follows it could not be read.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config options/afsd_recipe.py --data.root DIR
# Paper:    unknown. Measured here: not run (needs THUMOS14 and a GPU).
schedule = dict(epochs=16, warmup=0, minimum=None)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",  # one rate, and everything decayed
    paramwise_cfg=None,
    optimizer=dict(type="Adam", lr=1e-5, weight_decay=1e-3),
    clip_grad=None,
)
