# What all configs share: the Runner, its hooks, and the recipe that was chosen here for a transformer backbone (the
# paper's learning rate and number of epochs are not public; it follows AFSD's recipe in the rest).
# `schedule` counts epochs; the engine knows how many iterations of how many clips they are, and fills in the rest.
custom_imports = dict(
    imports=[
        "paperkit.training.openmmlab",
        "stpt.models.mm_classifier",
        "stpt.models.mm_detector",
        "stpt.training.clips",
        "stpt.training.datasets",
        "stpt.training.metric",
        "stpt.training.optimizer_constructor",
        "stpt.training.progress_hook",
        "stpt.training.timeline_hook",
    ],
    allow_failed_imports=False,
)
default_scope = "stpt"
seed = 2020  # AFSD's
randomness = dict(seed=seed)
schedule = dict(epochs=20, warmup=1, minimum=1e-6)  # linear rise, then a cosine from the rate to the minimum
optim_wrapper = dict(
    type="OptimWrapper",  # bfloat16, as this recipe trains: --amp
    constructor="STPTGroups",
    paramwise_cfg=dict(backbone=0.1),
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    accumulative_counts=1,
)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=1, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="CheckpointHook",
        by_epoch=False,
        max_keep_ckpts=3,
        backend_args=dict(backend="whole_files"),
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
custom_hooks = [dict(type="SeedIteration", seed=seed), dict(type="ProgressHook")]
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl")
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="Visualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
