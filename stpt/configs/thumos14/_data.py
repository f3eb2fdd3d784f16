# THUMOS14 as AFSD has it: arrays of 10 frames a second at 112 x 112, windows of 256 frames, 20 classes.
# From video files `stpt prepare` makes such arrays; name their folder with --data.frames.
_base_ = ["../_run.py"]
size = (96, 96)
data_root = "datasets/thumos14"
train_pipeline = [
    dict(type="ReadClip"),
    dict(type="CropClip", size=96, random=True),
    dict(type="FlipClip", prob=0.5),
    dict(type="ConsistencySplice"),
    dict(type="BoundaryMasks"),
    dict(type="PackActions"),
]
test_pipeline = [
    dict(type="ReadClip"),
    dict(type="CropClip", size=96),
    dict(type="PackActions"),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="PlacedSampler", shuffle=True, seed=2020),
    dataset=dict(
        type="TADDataset",
        seed=2020,
        data_root=data_root,
        ann_file="val_Annotation_ours.csv",
        frames="validation_npy",
        table="val_video_info.csv",
        clips="windows",  # of the detector's length
        stride=30,
        consistency="thumos",
        pad_mode="afsd",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="TADDataset",
        data_root=data_root,
        ann_file="test_Annotation_ours.csv",
        frames="test_npy",
        table="test_video_info.csv",
        clips="windows",  # of the detector's length
        stride=128,
        pad_mode="afsd",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TADMetric", truth=f"{data_root}/thumos_gt.json", subset="test")
test_evaluator = val_evaluator
# mAP on what is validated: the test videos, or those that --data.hold_out keeps out of training.
default_hooks = dict(checkpoint=dict(save_best="mAP", rule="greater"))
custom_hooks = [
    dict(type="SeedIteration", seed=2020),
    dict(type="ProgressHook"),
    dict(type="TimelineHook", videos=2),
]
