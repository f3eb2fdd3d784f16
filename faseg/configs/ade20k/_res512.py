# ADE20K at 512 x 512: 20210 training and 2000 validation pictures, 150 classes; 160k iterations of 16 pictures.
_base_ = ["../_faseg.py"]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="ShortestEdge", sizes=[int(tenth * 0.1 * 512) for tenth in range(5, 21)], longest=2048),
    dict(type="RandomCrop", crop_size=(512, 512)),
    dict(type="PhotoMetricDistortion"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Pad", size=(512, 512), pad_val=dict(img=128, seg=255)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ShortestEdge", sizes=512, longest=2048),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ShortestEdge", sizes=512, longest=2048),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="ShortestEdge", sizes=size, longest=3584) for size in (256, 384, 512, 640, 768, 896)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="mmengine.LabelsFromFile")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
data_root = "data/ade/ADEChallengeData2016"
train_dataloader = dict(
    dataset=dict(
        type="SeededADE20K",
        seed=0,
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="SeededADE20K",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
