# AFSD's I3D on RGB, the baseline, by its own recipe: the backbone learns at a tenth of the head's rate.
# Command:  make stpt-train CONFIG=stpt/configs/activitynet/afsd_i3d.py ARGS="--data.root DIR"
# Paper:    AFSD 32.9 average mAP on RGB alone, 34.4 with optical flow, both with an external classifier
# Measured here: not run (needs ActivityNet, rgb_imagenet.pt and a GPU)
_base_ = ["./_data.py"]
model = dict(
    type="STPTDetector",
    data_preprocessor=dict(type="ClipPreprocessor"),
    backbone=dict(name="i3d"),
    detector=dict(variant="activitynet", num_classes=2, frames=768),
    consistency=0.1,
    pretrained="rgb_imagenet.pt",
)
schedule = dict(epochs=16, warmup=0, minimum=None)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(_delete_=True, custom_keys=dict(backbone=dict(lr_mult=0.1))),
    optimizer=dict(type="Adam", lr=1e-4, weight_decay=1e-4),
    clip_grad=None,
)
