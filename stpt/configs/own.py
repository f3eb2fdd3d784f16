# STPT (LLGG) on your own videos: windows of 256 frames at 10 a second, or with --data.clips whole a clip a video.
# Command:  stpt train --config stpt/configs/own.py --data.annotations FILE.json --data.frames VIDEOS --amp
#           FILE.json is of ActivityNet's form, THUMOS14's or ActionFormer's; `stpt annotations check` looks it through.
#           Subsets are called training and validation, or as --data.subsets says. The classes are those of the file.
# Measured here: training on a made folder is in tests/training/test_recipes.py.
_base_ = ["./thumos14/stpt.py"]
data_root = ""
annotations = "annotations.json"
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file=annotations, frames="videos", table=None, subset="training", pad_mode="grey"
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file=annotations, frames="videos", table=None, subset="validation", pad_mode="grey"
    )
)
test_dataloader = val_dataloader
thresholds = [0.3, 0.4, 0.5, 0.6, 0.7]
val_evaluator = dict(truth=annotations, subset="validation", thresholds=thresholds)
test_evaluator = val_evaluator
