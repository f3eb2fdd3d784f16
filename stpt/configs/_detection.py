# What training for detection shares, whatever the data: the steps of a clip, the loaders, and pictures of validation.
_base_ = ["./_run.py"]
size = (96, 96)
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
    dataset=dict(type="TADDataset", seed=2020, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="TADDataset", test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
custom_hooks = [
    dict(type="SeedIteration", seed=2020),
    dict(type="ProgressHook"),
    dict(type="TimelineHook", videos=2),
]
