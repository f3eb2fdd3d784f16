# FASeg with Swin-L on ADE20K, 160k iterations, batch 16, mixed precision (README of the authors).
# Command:  make faseg-train CONFIG=faseg/configs/ade20k/faseg_swin_l.py ARGS="--amp"
# Paper:    56.3 mIoU at one scale, 57.7 at several; 228 M parameters (the code has 222 M), 405 G multiply-adds
# Measured here: not run (needs ADE20K and 8 GPUs); training, validation and resume on a made folder are in
#           tests/training/test_segmentation.py. Starts from
#           swin_large_patch4_window12_384_22k.pth, ImageNet-22k.
_base_ = ["./_res640.py"]
model = dict(
    backbone=dict(_delete_=True, type="FASegSwin", name="swin_l", pretrained="swin_large_patch4_window12_384_22k.pth"),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
)
