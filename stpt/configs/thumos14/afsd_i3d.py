# AFSD's I3D on RGB, the baseline, by its own recipe: 16 epochs at a constant rate, of which it reports the one before
# the last. Its Adam has L2 decay.
# Command:  make stpt-train CONFIG=stpt/configs/thumos14/afsd_i3d.py ARGS="--data.root DIR"
# Paper:    AFSD 43.2 average mAP on RGB alone, 52.0 with optical flow
# Measured here: not run (needs THUMOS14, rgb_imagenet.pt and a GPU). Its released checkpoint is evaluated by
#           stpt eval --config stpt/configs/thumos14/afsd_i3d.py --ckpt checkpoint-15.ckpt --data.root DIR --test afsd
_base_ = ["./_data.py"]
model = dict(
    type="STPTDetector",
    data_preprocessor=dict(type="ClipPreprocessor"),
    backbone=dict(name="i3d"),
    detector=dict(variant="thumos", num_classes=21, frames=256),
    consistency=0.1,
    pretrained="rgb_imagenet.pt",
)
schedule = dict(epochs=16, warmup=0, minimum=None)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",  # one rate, and everything decayed
    paramwise_cfg=None,
    optimizer=dict(type="Adam", lr=1e-5, weight_decay=1e-3),
    clip_grad=None,
)
