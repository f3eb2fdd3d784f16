# FASeg with ResNet-50 on ADE20K, 160k iterations, batch 16, mixed precision (README of the authors).
# Command:  make faseg-train CONFIG=faseg/configs/ade20k/faseg_r50.py ARGS="--amp"
# Paper:    48.3 mIoU at one scale, 49.3 at several; 51 M parameters, 72 G multiply-adds at 512 x 512
# Measured here: not run (needs ADE20K and 8 GPUs); training, validation and resume on a made folder are in
#           tests/training/test_segmentation.py. Starts from the weights resnet50.pth of torchvision, ImageNet-1k.
_base_ = ["./_res512.py"]
