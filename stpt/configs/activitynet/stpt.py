# STPT (LLGG) on ActivityNet-1.3, RGB at 96 x 96: a re-implementation, whose rate, epochs, windows and sizes were chosen
# here.
# Command:  make stpt-train CONFIG=stpt/configs/activitynet/stpt.py ARGS="--data.root DIR --amp"
# Paper:    33.4 average mAP with an external classifier, as a later paper cites it
# Measured here: not run (needs ActivityNet, weights of Kinetics-400 and a GPU); training on a made folder is in
#           tests/training/test_recipes.py. 329 G multiply-accumulates of the backbone (stpt flops).
_base_ = ["./_data.py"]
model = dict(
    type="STPTDetector",
    data_preprocessor=dict(type="ClipPreprocessor"),
    backbone=dict(name="stpt_768", drop_path=0.1),
    detector=dict(variant="activitynet", num_classes=2, frames=768),
    consistency=0.1,
    pretrained=None,
)
