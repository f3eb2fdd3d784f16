"""A stitched network on real images, trained with Lightning and evaluated configuration by configuration.

--network.*: which anchors are stitched, and how; --training.*: what a step does; --optim.*: optimiser and schedule;
--savings.* and --ema.*: what saves time or memory; --teacher.*: the distillation teacher; --data.*: the images;
--trainer.*: Lightning's Trainer.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from timm.layers import convert_splitbn_model
from torch import nn

from paperkit.command.engines import device
from paperkit.data.images import ImageData
from paperkit.data.layouts import imagenet_classes
from paperkit.data.sizes import SizeSchedule, check_sizes
from paperkit.errors import UserError, one_line
from paperkit.files.atomic import write_atomic
from paperkit.files.runs import RunFolder, process_rank
from paperkit.files.weights import load_strict, read_weights
from paperkit.results.metrics import Metrics
from paperkit.results.report import table
from paperkit.training.optim import OptimConfig, build, check_clipping
from paperkit.training.savings import EMA, Savings
from paperkit.training.savings import check as check_switches
from paperkit.training.switches import apply
from paperkit.training.switches import callbacks as averaging
from paperkit.training.trainer import add_trainer_options, best_state, fit, make_trainer, trainer_options
from snnet.figures.stitches import draw, draw_more, points_of
from snnet.method.bn_recalibration import recalibrate
from snnet.method.budget import operating_points
from snnet.method.counting import configuration_macs
from snnet.method.enumeration import LayerAssignment
from snnet.method.least_squares import cut_residuals, initialise
from snnet.method.sampling import REFUSED_SAVINGS
from snnet.method.stitching import mean_logits
from snnet.models.anchors import (
    CLASSES,
    SNNet,
    create_anchor,
    input_size_of,
    load_folder,
    read_anchors,
    saved_classes,
    stitch,
)
from snnet.models.released_networks import read_released
from snnet.training.evaluation import evaluate_images, summarise_images
from snnet.training.joint import JointTraining, TrainingConfig, parameter_groups

MOST_INIT_IMAGES = 10_000
"""Images for least squares, which are all in memory at once; the paper needs 100."""
AnchorOption = bool | int | float | str | list[int] | list[float] | None
"""What an option of an anchor may be: plain values, so that no config can name a class to build."""


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

    anchors: list[str | dict[str, AnchorOption]] = field(
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

    def __post_init__(self) -> None:
        self.weights, self.start = expanded(self.weights), expanded(self.start)


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

    def __post_init__(self) -> None:
        self.weights = expanded(self.weights)


def expanded(path: str | None) -> str | None:
    """The path with the home folder for `~`, which no shell expands in a config."""
    return None if path is None else str(Path(path).expanduser()) if path.startswith("~") else path


def add_arguments(parser: Any) -> None:
    """The options of a training run."""
    parser.add_argument("--training_seed", type=int, default=0, help="rank r draws its ids from the stream of seed + r")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    parser.add_class_arguments(NetworkConfig, "network")
    parser.add_class_arguments(TrainingConfig, "training")
    parser.add_class_arguments(TeacherConfig, "teacher")
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(Savings, "savings")
    parser.add_class_arguments(EMA, "ema")
    parser.add_class_arguments(ImageData, "data")
    further = ("max_time", "gradient_clip_algorithm", "val_check_interval", "fast_dev_run")
    add_trainer_options(parser, defaults={"max_epochs": 50}, also=further)


def add_evaluation_arguments(parser: Any) -> None:
    """Which weights, and which configurations of theirs."""
    parser.add_argument("--released", type=str | None, default=None, help="--ckpt is of this released SN-Net")
    parser.add_argument(
        "--anchors", type=list[str] | None, default=None, help="--ckpt is of these anchors (timm names)"
    )
    parser.add_argument("--part", type=str | None, default=None, help="which of several state dicts in --ckpt")
    parser.add_argument("--ids", type=list[int] | None, default=None, help="only these configurations: [0,1,24]")
    parser.add_argument("--best", action="store_true", help="the run's best weights instead of its last")
    parser.add_argument(
        "--recalibrate",
        type=int,
        default=0,
        help="estimate BatchNorm statistics for each configuration on this many training batches (an extension)",
    )


def add_figure_arguments(parser: Any) -> None:
    """Other models beside the stitches."""
    parser.add_argument("--zoo", type=str | None, default=None, help="CSV of other models: name,flops,top1")


def check(options: Any, run: RunFolder | None) -> None:
    """Refuse what cannot be trained, before there is a run folder: options, models, missing data.

    Raises:
        UserError: naming what does not go together.
    """
    if not 1 <= options.network.init_images <= MOST_INIT_IMAGES:
        raise UserError(f"init_images {options.network.init_images} must be from 1 to {MOST_INIT_IMAGES:,}")
    trainer = trainer_options(options.trainer)
    strategy_for(trainer)
    check_savings(options.training, options.savings, options.ema, options.data.sizes, trainer, options.network.split_bn)
    check_clipping(options.optim, trainer.get("gradient_clip_val"))
    rehearse(options)
    options.data.setup()


def check_savings(
    training: TrainingConfig,
    savings: Savings,
    ema: EMA,
    sizes: SizeSchedule,
    trainer: Mapping[str, Any],
    split_bn: int = 0,
) -> None:
    """Refuse savings that this training cannot take.

    Raises:
        UserError: naming what does not go together.
    """
    check_switches(
        savings,
        trainer,
        ema=ema,
        mixing=training.mixup > 0 or training.cutmix > 0,
        distillation=training.distillation != "none",
        sizes=sizes.sizes,
        refused=REFUSED_SAVINGS,
    )
    sizes.check_length(trainer.get("max_epochs") or 1)
    if savings.keep_hardest < 1 and training.stitches_per_step > 1:
        raise UserError(
            f"keep_hardest {savings.keep_hardest} and stitches_per_step {training.stitches_per_step}: which images are "
            "hard depends on the stitch; train one per step"
        )
    if savings.keep_hardest < 1 and split_bn > 1:
        raise UserError(
            f"keep_hardest {savings.keep_hardest} and split_bn {split_bn}: the parts of a batch would not stay parts"
        )


def rehearse(options: Any) -> None:
    """Build everything on the meta device: what a model or an optimiser cannot do shows before any image is read.

    Raises:
        UserError: naming the switch and the model.
    """
    training, optim, data = options.training, options.optim, options.data
    bare = replace(options.network, weights=None, start=None)
    with torch.device("meta"):
        network = build_network(bare, data.num_classes)
        models = [*network.anchors]
        if training.distillation != "none":
            models.append(create_anchor(options.teacher.name, False, num_classes=data.num_classes))
    apply(network, options.savings)
    for model in models if len(data.sizes.sizes) > 1 else ():
        check_sizes(model, data.sizes.sizes)
    check_images(models, data)
    build(parameter_groups(network, training, optim.weight_decay), optim, 1, 1_000_000, global_batch=1)


def check_images(models: Sequence[nn.Module], data: ImageData) -> None:
    """Run each model on images without numbers.

    Raises:
        UserError: if one does not take the size of the data's images, or gives other logits than their classes.
    """
    images = torch.empty(2, *image_size(data), device="meta")
    for model in models:
        name = getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__)
        try:
            logits = mean_logits(model.eval()(images))
        except Exception as error:  # each model says in its own way what it does not take
            raise UserError(
                f"{name} does not take images of {'x'.join(map(str, image_size(data)))}: {one_line(str(error))[:200]}"
            ) from error
        if logits.shape != (2, data.num_classes):
            raise UserError(
                f"{name} gives logits of shape {tuple(logits.shape)} for 2 images of {data.num_classes} classes"
            )


def train(run: RunFolder, options: Any, resuming: bool) -> None:
    """Train to the end, or from the last checkpoint to the end; then write `network/` (last) and `best/` weights."""
    config, training_config, data = options.network, options.training, options.data
    resuming = resuming and (run.path / "checkpoints" / "last.ckpt").exists()
    if resuming:  # weights come from the checkpoint
        config = replace(config, weights=None, start=None)
    pl.seed_everything(options.training_seed, workers=False, verbose=False)
    network = build_network(config, data.num_classes)
    if not resuming and config.initialisation != "default" and not config.start:
        images = data.training_sample(config.init_images)
        initialise(network, images.split(20), config.initialisation)
    apply(network, options.savings)
    distilled = training_config.distillation != "none"
    training = JointTraining(
        network,
        training_config,
        options.optim,
        data.num_classes,
        options.training_seed,
        chosen_ids(run, network, data, training_config.best_cuts),
        None if training_config.sampling == "uniform" else configuration_macs(network, image_size(data)),
        build_teacher(options.teacher, data.num_classes) if distilled else None,
        options.savings,
    )
    trainer = build_trainer(
        run, trainer_options(options.trainer), options.training_seed, options.save_every, options.ema
    )
    fit(trainer, training, data, resuming)
    if process_rank() == 0:
        write_class_names(data, run.path / CLASSES)
        network.save_pretrained(run.path / "network")
        save_best(network, run.path)
        kept = "network/ (last), best/ (highest mean validation accuracy)"
        print(f"{run.path}: {kept}; evaluate: snnet eval --ckpt {run.path}")


def image_size(data: ImageData) -> tuple[int, int, int]:
    """(channels, H, W)."""
    return (3, data.input_size, data.input_size)


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Every configuration, or those of --ids; table, metrics.json and figures."""
    start = time.monotonic()
    network = evaluated_network(run, options).to(device(options.device)).eval()
    data = options.data
    place = Path(options.ckpt) if options.ckpt and Path(options.ckpt).is_dir() else None
    data.use_head(network.num_classes, saved_classes(run.path if run else place))
    every = range(network.num_configurations)
    ids = [network.check_id(i) for i in (every if options.ids is None else options.ids)]
    points = operating_points(network, input_size_of(network), network.anchor_names)
    subject = fingerprint(network) + recalibrate_on(network, data, ids, options.recalibrate)
    kind = "_best" if options.best else ""  # beside metrics.json, which is of the last weights
    if run is not None and lies_within(options.ckpt, run) and Path(options.ckpt).name != "network":
        kind = f"_{Path(options.ckpt).stem}"
    target = Path(options.output)
    lines = target / f"stitches{kind}.jsonl"
    results = evaluate_images(network, points, data, ids, lines, subject)
    metrics = summarise_images(network, points, network.anchor_names, results, data, time.monotonic() - start)
    metrics.write(target / f"metrics{kind}.json")
    drawn = ", ".join(f"{path.parent.name}/{path.name}" for path in draw(metrics, target / f"figures{kind}"))
    table(
        [
            (c["id"], c["name"], c["macs"] / 1e9, c["params"] / 1e6, c["acc1"], "*" if c["pareto"] else "")
            for c in metrics.extra["configurations"]
        ],
        ("id", "configuration", "GMAC", "params [M]", "top-1 [%]", "Pareto"),
        metrics.extra["data"],
    )
    print(f"{target}: metrics{kind}.json, {lines.name}, {drawn}")


def evaluated_network(run: RunFolder | None, options: Any) -> SNNet:
    """The network of a run, of a saved folder, or of a weight file whose network the options name.

    Raises:
        UserError: if there is none, or the weights do not fit.
    """
    if options.released or options.anchors:
        if options.ckpt is None:
            raise UserError("name the weights with --ckpt")
        if options.released:
            return read_released(options.released, options.ckpt, options.trust_pickle, options.part)[0]
        classes = options.data.num_classes
        return read_anchors(options.anchors, classes, options.ckpt, options.trust_pickle, options.part)[0]
    if run is None and options.ckpt is None:
        raise UserError("name the weights with --ckpt")
    if run is None or lies_within(options.ckpt, run):
        if Path(options.ckpt).is_dir():
            return load_folder(Path(options.ckpt))[0]
        if run is not None:
            return network_of_checkpoint(options)
    else:
        weights = run.path / ("best" if options.best else "network")
        if not weights.exists():
            raise UserError(f"{run.path} has no {weights.name}/: the run did not get that far")
        return load_folder(weights)[0]
    raise UserError(
        f"{options.ckpt} is a weight file; say of which network with --released NAME or --anchors [NAME,...]"
    )


def lies_within(ckpt: str | None, run: RunFolder) -> bool:
    """Whether `--ckpt` names weights in the run, not the run itself."""
    return ckpt is not None and not Path(ckpt).samefile(run.path)


def network_of_checkpoint(options: Any) -> SNNet:
    """The network of one of a run's checkpoints, built as the run's settings say."""
    network = build_network(replace(options.network, weights=None, start=None), options.data.num_classes)
    state = read_weights(options.ckpt, options.trust_pickle, part=options.part, part_advice="--part")
    load_strict(network, state, options.ckpt, lambda key: key.removeprefix("network."))
    return network


def recalibrate_on(network: SNNet, data: ImageData, ids: Sequence[int], batches: int) -> str:
    """Give each configuration BatchNorm statistics of its own, if asked to; returns how to name the result."""
    if not batches:
        return ""
    data.setup()
    network.statistics = recalibrate(network, [images for images, _ in islice(data.train_dataloader(), batches)], ids)
    return f", BatchNorm recalibrated on {batches} batches"


def fingerprint(network: nn.Module) -> str:
    """A short hash of all weights: results are continued for the same weights alone."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).double().numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]


def figures(run: RunFolder | None, options: Any) -> list[Path]:
    """The figures of an evaluated run again, with its latencies where they were measured."""
    if run is None:
        raise UserError(f"{options.run} is not a run folder")
    metrics, folder = Metrics.read(run.path / "metrics.json"), Path(options.output or run.path / "figures")
    return draw(metrics, folder) + draw_more(points_of(metrics), run.path, options.zoo, folder)


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
        load_strict(network, read_weights(config.start, advice=None), config.start)
    if config.split_bn > 1:
        for i, anchor in enumerate(network.anchors):
            network.anchors[i] = convert_splitbn_model(anchor, config.split_bn)
    return network


def source_of(weights: str | None) -> bool | str:
    """`timm` is True, None is False, a folder is itself."""
    return weights == "timm" or weights or False


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
    """Lightning's Trainer; its best checkpoint is the one of the highest mean validation accuracy."""
    return make_trainer(
        run.path,
        {**options, "strategy": strategy_for(options)},
        seed,
        resume_with=f"snnet train --resume {run.path}",
        save_every=save_every,
        best="val/acc1",
        averaging=averaging(ema),
        csv=True,
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
    """Names of the classes, for `snnet eval` and `predict`; none of ImageNet's own, which need no file."""
    if data.class_names is not None and data.class_names != imagenet_classes():
        write_atomic(path, json.dumps(data.class_names) + "\n")


def save_best(network: SNNet, folder: Path) -> None:
    """`best/`: the network of the checkpoint with the highest mean validation accuracy."""
    weights = best_state(folder)
    if weights is None:
        return
    last = {key: value.clone() for key, value in network.state_dict().items()}
    load_strict(network, weights, str(folder / "checkpoints" / "best.ckpt"))
    network.save_pretrained(folder / "best")
    network.load_state_dict(last)
