# Pre-training of the backbone by recognition on Kinetics-400: 96 frames, every second of the file, 96 x 96.
# STPT is said to need its own; nobody published how, so that this recipe was chosen here.
# Command:  make stpt-train CONFIG=stpt/configs/kinetics/pretrain.py ARGS="--data.root DIR --amp --launcher pytorch"
#           DIR holds train.txt and val.txt of lines `FILE NUMBER`, and the folder videos that the files are in.
#           Starts from inflated ImageNet weights with --cfg-options model.pretrained=FILE (model.inflation=center: in
#           the middle frame alone).
# Paper:    unknown. Measured here: not run (needs Kinetics-400 and 8 GPUs); a step on a made folder is in
#           tests/training/test_recipes.py. 38.7 G multiply-accumulates a clip (stpt flops).
_base_ = ["../_run.py"]
data_root = "datasets/kinetics400"
model = dict(
    type="STPTClassifier",
    data_preprocessor=dict(type="ClipPreprocessor"),
    backbone=dict(name="stpt", drop_path=0.2),
    num_classes=400,
    label_smoothing=0.1,
    pretrained=None,
)
train_pipeline = [
    dict(type="DecodeClip"),
    dict(type="RandAugmentClip", num_ops=2, magnitude=9),
    dict(type="CropClip", size=96, random=True),
    dict(type="FlipClip", prob=0.5),
    dict(type="PackClip"),
]
test_pipeline = [
    dict(type="DecodeClip"),
    dict(type="CropClip", size=96),
    dict(type="PackClip"),
]
train_dataloader = dict(
    batch_size=8,  # a process
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="PlacedSampler", shuffle=True, seed=2020),
    dataset=dict(
        type="VideoClips",
        seed=2020,
        data_root=data_root,
        ann_file="train.txt",
        videos="videos",
        num_classes=400,
        clip_length=96,
        clip_stride=2,
        short_side=128,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="VideoClips",
        data_root=data_root,
        ann_file="val.txt",
        videos="videos",
        num_classes=400,
        clip_length=96,
        clip_stride=2,
        short_side=128,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="mmaction.AccMetric")
test_evaluator = val_evaluator
schedule = dict(epochs=100, warmup=10, minimum=1e-6)
# 5e-4 for 256 clips: with 8 processes of 8 clips and 4 steps an update.
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(backbone=1.0),
    accumulative_counts=4,
)
