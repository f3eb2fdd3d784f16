"""A stitched network trained on real images: from the settings of a config file to a finished run folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from timm.layers import convert_splitbn_model
from torch import nn

from paperkit.data.images import ImageData
from paperkit.data.resumable import SeedStep
from paperkit.data.sizes import check_sizes
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank, write_atomic
from paperkit.files.weights import load_strict, read_checkpoint, read_weights
from paperkit.training.checkpoint_io import AtomicCheckpointIO
from paperkit.training.guard import SaveOnSignal, StopOnNaN
from paperkit.training.optim import OptimConfig, build
from paperkit.training.savings import EMA, Savings
from paperkit.training.switches import apply, callbacks
from snnet.method.counting import configuration_macs
from snnet.method.enumeration import LayerAssignment
from snnet.method.least_squares import cut_residuals, initialise
from snnet.models.anchors import SNNet, create_anchor, stitch
from snnet.training.joint import JointTraining, TrainingConfig, parameter_groups


@dataclass
class NetworkConfig:
    """Which anchors are stitched, and how.

    Args:
        anchors: timm names, fast to slow; `{name: ..., img_size: 64}` passes further arguments to `timm.create_model`.
        weights: pretrained anchors: `timm` (its cache or the hub), a folder with `<name>.safetensors` or `.pth`, or
            None.
        start: weights of a whole stitched network to start from, instead of `weights` and initialisation.
        initialisation: `pinv` and `gram` solve least squares (see `least_squares.initialise`), `default` is PyTorch's.
        init_images: images for least squares.
        nearest, window, stride, stitched_final_norm, layer_assignment, any_order: see `StitchedNetwork`.
        split_bn: BatchNorms that keep this many sets of statistics, one per part of the batch (AdvProp's trick, timm's
            `SplitBatchNorm2d`); 0 and 1 leave them alone. Evaluation uses the first.
        drop_path_rate: stochastic depth of every anchor.
    """

    anchors: list[str | dict[str, Any]] = field(
        default_factory=lambda: [f"deit_{s}_patch16_224.fb_in1k" for s in ("tiny", "small", "base")]
    )
    weights: str | None = "timm"
    start: str | None = None
    initialisation: Literal["pinv", "gram", "default"] = "pinv"
    init_images: int = 100
    nearest: bool = True
    window: int = 2
    stride: int = 1
    stitched_final_norm: bool = True
    layer_assignment: LayerAssignment = "released"
    any_order: bool = False
    split_bn: int = 0
    drop_path_rate: float = 0.0


@dataclass
class TeacherConfig:
    """The model that distillation learns from.

    Args:
        name: timm name.
        weights: `timm` or a folder, as for the anchors.
        compile: compile it (worth it on a GPU over a long run).
    """

    name: str = "regnety_160.deit_in1k"
    weights: str | None = "timm"
    compile: bool = False


def build_network(config: NetworkConfig, num_classes: int) -> SNNet:
    """The network with its anchors' weights; stitching layers still at PyTorch's initialisation."""
    shared = {"drop_path_rate": config.drop_path_rate}  # also when it is 0: timm's Swin has 0.1 unless told otherwise
    anchors = [{**shared, **({"name": a} if isinstance(a, str) else a)} for a in config.anchors]
    network = stitch(
        anchors,
        pretrained=False if config.start else source_of(config.weights),
        num_classes=num_classes,
        nearest=config.nearest,
        window=config.window,
        stride=config.stride,
        stitched_final_norm=config.stitched_final_norm,
        layer_assignment=config.layer_assignment,
        any_order=config.any_order,
    )
    assert isinstance(network, SNNet)
    if config.start:
        load_strict(network, read_weights(config.start), config.start)
    if config.split_bn > 1:
        for i, anchor in enumerate(network.anchors):
            network.anchors[i] = convert_splitbn_model(anchor, config.split_bn)
    return network


def source_of(weights: str | None) -> bool | str:
    """`timm` is True, None is False, a folder is itself."""
    return weights == "timm" or weights or False


def rehearse(
    network_config: NetworkConfig,
    training: TrainingConfig,
    teacher: TeacherConfig,
    optim: OptimConfig,
    savings: Savings,
    data: ImageData,
) -> None:
    """Builds everything on the meta device, so that what a model or an optimiser cannot do ends the run before it is
    one, and before any data are read.

    Raises:
        UserError: naming the switch and the model.
    """
    bare = replace(network_config, weights=None, start=None)
    with torch.device("meta"):
        network = build_network(bare, data.num_classes)
        models = [*network.anchors]
        if training.distillation != "none":
            models.append(create_anchor(teacher.name, False, num_classes=data.num_classes))
    apply(network, savings)
    for model in models if len(data.sizes.sizes) > 1 else ():
        check_sizes(model, data.sizes.sizes)
    build(parameter_groups(network, training, optim.weight_decay), optim, 1, 1_000_000, global_batch=1)


def train(
    run: RunFolder,
    network_config: NetworkConfig,
    training_config: TrainingConfig,
    teacher_config: TeacherConfig,
    optim: OptimConfig,
    savings: Savings,
    ema: EMA,
    data: ImageData,
    trainer_options: dict[str, Any],
    seed: int,
    save_every: int,
    resume: bool,
) -> JointTraining:
    """Train to the end (or from the last checkpoint), and write `network/`, the best and the last weights, into the
    run.
    """
    last = run.path / "checkpoints" / "last.ckpt"
    resuming = resume and last.exists()
    if resuming:  # weights come from the checkpoint
        network_config = NetworkConfig(**{**vars(network_config), "weights": None, "start": None})
    pl.seed_everything(seed, workers=False, verbose=False)
    network = build_network(network_config, data.num_classes)
    if not resuming and network_config.initialisation != "default" and not network_config.start:
        images = data.training_sample(network_config.init_images)
        initialise(network, images.split(20), network_config.initialisation)
    apply(network, savings)
    teacher = build_teacher(teacher_config, data.num_classes) if training_config.distillation != "none" else None
    macs = None
    if training_config.sampling != "uniform":
        macs = configuration_macs(network, (3, data.input_size, data.input_size))
    ids = chosen_ids(run, network, data, training_config.best_cuts)
    training = JointTraining(network, training_config, optim, data.num_classes, seed, ids, macs, teacher, savings)
    trainer = build_trainer(run, trainer_options, seed, save_every, ema)
    trainer.fit(training, datamodule=data, ckpt_path=last if resuming else None)
    if process_rank() == 0:
        write_class_names(data, run.path / "classes.json")
        network.save_pretrained(run.path / "network")
        save_best(network, run.path)
    return training


def chosen_ids(run: RunFolder, network: SNNet, data: ImageData, best_cuts: int) -> list[int] | None:
    """The anchors and the `best_cuts` stitches of smallest residual; kept in the run, for a resumed one."""
    if not best_cuts:
        return None
    path = run.path / "chosen_ids.json"
    if not path.exists():
        residuals = cut_residuals(network, data.training_sample(50))
        best = sorted(residuals, key=lambda config_id: residuals[config_id])[:best_cuts]
        write_atomic(path, json.dumps([*range(len(network.anchors)), *sorted(best)]) + "\n")
    ids: list[int] = json.loads(path.read_text())
    return ids


def build_teacher(config: TeacherConfig, num_classes: int) -> nn.Module:
    teacher = create_anchor(config.name, source_of(config.weights), num_classes=num_classes)
    if config.compile:
        teacher.compile()  # in place: torch.compile(model) would change the keys
    return teacher


def build_trainer(run: RunFolder, options: dict[str, Any], seed: int, save_every: int, ema: EMA) -> pl.Trainer:
    """Lightning's Trainer with what every run needs: seeded steps, whole checkpoints, a clean end."""
    folder = run.path / "checkpoints"
    used: list[Callback] = [
        SeedStep(seed),
        StopOnNaN(),
        *callbacks(ema),
        SaveOnSignal(f"snnet train --resume {run.path}"),
        ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=save_every),
        ModelCheckpoint(folder, filename="best", monitor="val/acc1", mode="max", enable_version_counter=False),
        LearningRateMonitor(logging_interval="step"),
    ]
    return pl.Trainer(
        **{**options, "strategy": strategy_for(options)},
        default_root_dir=run.path,
        logger=[TensorBoardLogger(run.path, "", "tensorboard"), CSVLogger(run.path, "", "csv")],
        callbacks=used,
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def strategy_for(options: dict[str, Any]) -> Any:
    """Plain `ddp` (or `auto` on several devices) must expect parameters without a gradient: a step uses one stitch.

    Raises:
        UserError: for strategies that shard parameters, which need one and the same stitch on all processes.
    """
    strategy = options.get("strategy", "auto")
    if not isinstance(strategy, str):
        return strategy
    if strategy.startswith(("fsdp", "deepspeed", "model_parallel")):
        raise UserError(
            f"strategy {strategy} shards parameters, but every process trains a stitch of its own here; use ddp"
        )
    several = strategy == "ddp" or (strategy == "auto" and world_size(options) > 1)
    return DDPStrategy(find_unused_parameters=True) if several else strategy


def world_size(options: dict[str, Any]) -> int:
    """Processes that the options ask for, as Lightning counts them."""
    chosen = {key: options[key] for key in ("accelerator", "devices", "num_nodes") if key in options}
    probe = pl.Trainer(**chosen, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return probe.world_size


def write_class_names(data: ImageData, path: Path) -> None:
    """Names of the class folders, for `snnet predict`."""
    folder = data.root / "train"
    if data.dataset == "imagenet" and folder.is_dir():
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if len(names) == data.num_classes != 1000:
            write_atomic(path, json.dumps(names) + "\n")


def save_best(network: SNNet, folder: Path) -> None:
    """`best/`: the network of the checkpoint with the highest mean validation accuracy."""
    path = folder / "checkpoints" / "best.ckpt"
    if not path.exists():
        return
    state = read_checkpoint(path)["state_dict"]
    prefix = "network."
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    last = {key: value.clone() for key, value in network.state_dict().items()}
    load_strict(network, weights, str(path))
    network.save_pretrained(folder / "best")
    network.load_state_dict(last)


TRAINER_OPTIONS: Sequence[str] = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "max_epochs",
    "max_steps",
    "max_time",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "deterministic",
    "benchmark",
    "check_val_every_n_epoch",
    "val_check_interval",
    "limit_train_batches",
    "limit_val_batches",
    "log_every_n_steps",
    "enable_progress_bar",
    "sync_batchnorm",
    "fast_dev_run",
)
