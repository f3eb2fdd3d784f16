# FASeg with ResNet-50 on CamVid: 367 training, 101 validation and 233 test pictures of 480 x 360, 11 classes, 11 void.
# Command:  make faseg-train CONFIG=faseg/configs/camvid/faseg_r50.py ARGS="--cfg-options data_root=data/CamVid"
# Paper:    none; the recipe is the one of ADE20K, scaled to 20k iterations of 8 pictures and this size
# Measured here: not run (needs CamVid and a GPU); training, validation and resume on a made folder are in
#           tests/training/test_segmentation.py. Starts from the weights resnet50.pth of torchvision, ImageNet-1k.
# Data:     folders train, val, test and trainannot, valannot, testannot (the SegNet release).
_base_ = ["../_faseg.py"]
classes = [
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
]  # fmt: skip
model = dict(decode_head=dict(num_classes=11))
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="ShortestEdge", sizes=[int(tenth * 0.1 * 360) for tenth in range(5, 21)], longest=1440),
    dict(type="RandomCrop", crop_size=(352, 480)),
    dict(type="PhotoMetricDistortion"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Pad", size=(480, 352), pad_val=dict(img=128, seg=255)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ShortestEdge", sizes=360, longest=1440),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ShortestEdge", sizes=360, longest=1440),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="ShortestEdge", sizes=size, longest=2520) for size in (180, 270, 360, 450, 540, 630)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="mmengine.LabelsFromFile")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
data_root = "data/CamVid"
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        type="SeededFolder",
        seed=0,
        classes=classes,
        void=[11],
        data_root=data_root,
        data_prefix=dict(img_path="train", seg_map_path="trainannot"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="SeededFolder",
        classes=classes,
        void=[11],
        data_root=data_root,
        data_prefix=dict(img_path="val", seg_map_path="valannot"),
        pipeline=test_pipeline,
    ),
)
test_prefix = dict(img_path="test", seg_map_path="testannot")
test_dataloader = {**val_dataloader, "dataset": {**val_dataloader["dataset"], "data_prefix": test_prefix}}
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0, begin=0, end=20001, by_epoch=False)]
train_cfg = dict(max_iters=20000, val_interval=1000)
default_hooks = dict(checkpoint=dict(interval=1000))
