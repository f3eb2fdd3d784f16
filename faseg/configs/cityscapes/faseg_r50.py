# FASeg with ResNet-50 on Cityscapes, 90k iterations, batch 16, mixed precision (README of the authors).
# Command:  make faseg-train CONFIG=faseg/configs/cityscapes/faseg_r50.py ARGS="--amp"
# Paper:    80.5 mIoU at one scale, 1024 x 2048; 67 M parameters (the code has 51 M), 533 G multiply-adds
# Measured here: not run (needs Cityscapes and 8 GPUs); training, validation and resume on a made folder are in
#           tests/training/test_segmentation.py. Starts from the weights resnet50.pth of torchvision, ImageNet-1k.
_base_ = ["../_faseg.py"]
model = dict(backbone=dict(norm="SyncBN"), decode_head=dict(num_classes=19))
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="ShortestEdge", sizes=[int(tenth * 0.1 * 1024) for tenth in range(5, 21)], longest=4096),
    dict(type="RandomCrop", crop_size=(512, 1024)),
    dict(type="PhotoMetricDistortion"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ShortestEdge", sizes=1024, longest=2048),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ShortestEdge", sizes=1024, longest=2048),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="ShortestEdge", sizes=size, longest=4096) for size in (512, 768, 1024, 1280, 1536, 1792)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="mmengine.LabelsFromFile")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
data_root = "data/cityscapes"
train_dataloader = dict(
    dataset=dict(
        type="SeededCityscapes",
        seed=0,
        data_root=data_root,
        data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="SeededCityscapes",
        data_root=data_root,
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0, begin=0, end=90001, by_epoch=False)]
train_cfg = dict(max_iters=90000)
