# ActivityNet-1.3 as AFSD has it: a clip of at most 768 frames a video, of fewer frames a second where it is
# longer (`stpt prepare VIDEOS --frames 768`, or the videos themselves), and a detector of actions without classes.
# Names for them come from a classifier of videos: stpt eval ... --classifier FILE. Without it mAP is that of one class.
_base_ = ["../_detection.py"]
data_root = "datasets/activitynet"
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="annotations.json",
        frames="videos",
        subset="training",
        clips="whole",  # of the detector's length
        class_agnostic=True,
        consistency="activitynet",
        pad_mode="grey",
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="annotations.json",
        frames="videos",
        subset="validation",
        clips="whole",  # of the detector's length
        class_agnostic=True,
        pad_mode="grey",
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="TADMetric",
    truth=f"{data_root}/annotations.json",
    subset="validation",
    classes=["action"],
    post=dict(above=1e-9, sigma=0.85, top_k=100, min_score=1e-9),
)
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best="one_class/mAP", rule="greater"))  # on what is validated
