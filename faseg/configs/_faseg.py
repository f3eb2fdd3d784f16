# What all configs share: the recipe of the authors' trainer, and the network with a ResNet-50. Data follow in the rest.
custom_imports = dict(
    imports=[
        "faseg.models.mm_head",
        "faseg.training.labelled_iou",
        "faseg.training.multi_scale",
        "faseg.training.optimizer_constructor",
        "faseg.training.shortest_edge",
        "paperkit.training.mmseg_data",
    ],
    allow_failed_imports=False,
)
default_scope = "mmseg"
seed = 0
randomness = dict(seed=seed)  # the initial weights; without it mmengine draws a seed of its own
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(type="FASegResNet", norm="FrozenBN", pretrained="resnet50.pth"),
    decode_head=dict(type="FASegHead", in_channels=[256, 512, 1024, 2048], num_classes=150),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
tta_model = dict(type="MeanOfScores")
train_dataloader = dict(
    batch_size=2,  # a process; the authors have 8
    num_workers=2,
    sampler=dict(type="PlacedSampler", shuffle=True, seed=seed),
)
val_dataloader = dict(batch_size=1, num_workers=2, sampler=dict(type="DefaultSampler", shuffle=False))
test_dataloader = val_dataloader
optim_wrapper = dict(
    type="OptimWrapper",  # mixed precision, as the authors train: --amp
    constructor="FASegGroups",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
# mmengine's PolyLR would reach 0 one step early: the authors' rate at iteration i is lr (1 - i / max_iters)^0.9.
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0, begin=0, end=160001, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=5000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
val_evaluator = dict(type="LabelledIoU", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="CheckpointHook",
        by_epoch=False,
        interval=5000,
        max_keep_ckpts=3,
        save_best="mIoU",
        rule="greater",
        backend_args=dict(backend="whole_files"),
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
custom_hooks = [dict(type="SeedIteration", seed=seed)]
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl")
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
