# THUMOS14 as AFSD has it: arrays of 10 frames a second at 112 x 112, windows of 256 frames, 20 classes.
# From video files `stpt prepare` makes such arrays; name their folder with --data.frames.
_base_ = ["../_detection.py"]
data_root = "datasets/thumos14"
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="val_Annotation_ours.csv",
        frames="validation_npy",
        table="val_video_info.csv",
        clips="windows",  # of the detector's length
        stride=30,
        consistency="thumos",
        pad_mode="afsd",
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="test_Annotation_ours.csv",
        frames="test_npy",
        table="test_video_info.csv",
        clips="windows",  # of the detector's length
        stride=128,
        pad_mode="afsd",
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TADMetric", truth=f"{data_root}/thumos_gt.json", subset="test")
test_evaluator = val_evaluator
# mAP on what is validated: the test videos, or those that --data.hold_out keeps out of training.
default_hooks = dict(checkpoint=dict(save_best="mAP", rule="greater"))
