# Semantic FPN with LITv2-B on ADE20K, 80k iterations, batch 16 (paper: table 3).
# Command:  make litv2-train CONFIG=litv2/configs/ade20k/semantic_fpn_litv2_b.py
# Paper:    47.2 mIoU, 90 M, 93 GFLOPs (single scale)
# Measured here: not run (needs ADE20K and 8 GPUs); training, validation and resume on a made folder are in
#           tests/training/test_segmentation.py. Starts from the ImageNet weights litv2_b.pth in the current folder.
_base_ = ["./_semantic_fpn.py"]
model = dict(
    backbone=dict(name="litv2_b", pretrained="litv2_b.pth", drop_path_rate=0.3),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
