# FASeg with Swin-B on ADE20K, 160k iterations, batch 16, mixed precision (README of the authors).
# Command:  make faseg-train CONFIG=faseg/configs/ade20k/faseg_swin_b.py ARGS="--amp"
# Paper:    55.0 mIoU at one scale, 56.0 at several; 113 M parameters, 225 G multiply-adds at 640 x 640
# Measured here: not run (needs ADE20K and 8 GPUs); training, validation and resume on a made folder are in
#           tests/training/test_segmentation.py. Starts from
#           swin_base_patch4_window12_384_22k.pth, ImageNet-22k.
_base_ = ["./_res640.py"]
model = dict(
    backbone=dict(_delete_=True, type="FASegSwin", name="swin_b", pretrained="swin_base_patch4_window12_384_22k.pth"),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)
