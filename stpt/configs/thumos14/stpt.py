# STPT (LLGG) on THUMOS14, RGB at 96 x 96: a re-implementation, whose rate, epochs, windows and sizes were chosen here.
# Command:  make stpt-train CONFIG=stpt/configs/thumos14/stpt.py ARGS="--data.root DIR --amp"
# Paper:    53.6 average mAP, as a later paper cites it, with 111.2 G multiply-accumulates (unverified)
# Measured here: not run (needs THUMOS14, weights of Kinetics-400 and a GPU); training, validation and resume on a made
#           folder are in tests/training/test_detection.py.
# Starts from fresh weights; --cfg-options model.pretrained=FILE takes a run of ../kinetics/pretrain.py, a 2D network's
# file or torchvision's mvit_v1_b.
_base_ = ["./_data.py"]
model = dict(
    type="STPTDetector",
    data_preprocessor=dict(type="ClipPreprocessor"),
    backbone=dict(name="stpt", drop_path=0.1),
    detector=dict(variant="thumos", num_classes=21, frames=256),
    consistency=0.1,
    pretrained=None,
)
