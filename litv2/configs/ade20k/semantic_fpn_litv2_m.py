# Semantic FPN with LITv2-M on ADE20K, 80k iterations, batch 16 (paper: table 3).
# Command:  make litv2-train CONFIG=litv2/configs/ade20k/semantic_fpn_litv2_m.py
# Paper:    45.7 mIoU, 52 M, 63 GFLOPs (single scale)
# Measured here: not run (needs ADE20K and 8 GPUs); training, validation and resume on a made folder are in
#           tests/training/test_segmentation.py. Starts from the ImageNet weights litv2_m.pth in the current folder.
_base_ = ["./_semantic_fpn.py"]
model = dict(
    backbone=dict(name="litv2_m", pretrained="litv2_m.pth", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
