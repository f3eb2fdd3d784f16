# ADE20K at 640 x 640, for the larger backbones.
_base_ = ["./_res512.py"]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="ShortestEdge", sizes=[int(tenth * 0.1 * 640) for tenth in range(5, 21)], longest=2560),
    dict(type="RandomCrop", crop_size=(640, 640)),
    dict(type="PhotoMetricDistortion"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Pad", size=(640, 640), pad_val=dict(img=128, seg=255)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ShortestEdge", sizes=640, longest=2560),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ShortestEdge", sizes=640, longest=2560),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="ShortestEdge", sizes=size, longest=4480) for size in (320, 480, 640, 800, 960, 1120)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="mmengine.LabelsFromFile")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
