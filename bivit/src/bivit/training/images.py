"""Train a binary classifier on real images from a float one: cross-layer binarization, the teacher's distribution.

Options: --network.* timm's network and the weights to start from, --binary.* what becomes binary and how, --schedule.*
the stages, --distillation.* teacher, loss and mixing, --optim.* optimiser and schedule of each stage, --data.* the
images, --savings.* and --ema.* the survey's savings, --trainer.* Lightning's Trainer (max_epochs is the sum of all
stages; devices, num_nodes, strategy, ...).

A run is one command whatever its stages are: each keeps its checkpoints and curves in `stages/NAME/`, and begins with
the weights of the one before, with fresh optimiser and learning rates. A killed run goes on within a stage or between
two.
"""

import csv
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from bivit.figures.curves import draw_curves
from bivit.figures.of_a_model import figures_of_student
from bivit.method.ledger import Ledger, ledger
from bivit.models.architectures import build_float, check_architecture, is_head
from bivit.models.binarize import BinaryConfig
from bivit.models.classifier import BinaryClassifier, load_classifier, packed, runs_on_bits
from bivit.models.images import read_images
from bivit.models.keys import SCALE, begin, read_start, weight_file
from bivit.training.distillation import Distillation, DistillationConfig, attention_names
from bivit.training.stages import ScheduleConfig, Stage, stages
from paperkit.command.engines import device
from paperkit.data.images import ImageData
from paperkit.data.seeding import seed_of
from paperkit.data.sizes import check_sizes
from paperkit.errors import UserError
from paperkit.files.keys import first_few
from paperkit.files.runs import RunFolder, process_rank, weights_of
from paperkit.files.weights import load_strict, read_metadata, read_weights, save_weights
from paperkit.results.record import Costs, record, told
from paperkit.results.report import save_figure
from paperkit.training.classification import accuracy_metrics, classification_loss, make_mixup, measured_accuracy
from paperkit.training.optim import (
    OptimConfig,
    build,
    check_clipping,
    clip_gradients,
    lightning_dict,
    step_schedule,
)
from paperkit.training.savings import EMA, Savings
from paperkit.training.savings import check as check_savings
from paperkit.training.switches import apply, callbacks, hardest, sharpened
from paperkit.training.trainer import (
    add_trainer_options,
    fit,
    last_evaluation,
    make_trainer,
    save_last_and_best,
    trainer_options,
)

RECIPE = {"optim.name": "adam", "optim.lr": 5e-4, "optim.weight_decay": 0.0, "optim.warmup_epochs": 5,
          "optim.warmup_lr": 1e-6, "optim.min_lr": 1e-5}  # fmt: skip
"""Adam without weight decay at 5e-4, cosine, 5 epochs of warm-up (stated); the bounds are ours."""
DONE = "weights.safetensors"
REFUSED = {"attention": "a binary attention has one form; what is fused is the packed network of `bivit pack`"}


@dataclass
class NetworkConfig:
    """The classifier.

    Args:
        name: timm's name.
        options: constructor arguments in place of timm's (img_size, depth, ...); img_size follows data.input_size.
        weights: what the student starts from and, where no other is named, the teacher: file, folder or run (`{name}`
            in it stands for the network's), or `timm` for its ImageNet weights.
        drop_path_rate: of the student.
        trust_pickle: read weights whose file may run code.
    """

    name: str = "deit_small_patch16_224"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    drop_path_rate: float = 0.0
    trust_pickle: bool = False

    def sizes(self, input_size: int) -> dict[str, Any]:
        """Constructor arguments for images of `input_size` px; a pyramid of convolutions takes any."""
        return ({} if self.name.startswith("pvt") else {"img_size": input_size}) | self.options


def build_student(
    config: NetworkConfig, binary: BinaryConfig, num_classes: int, input_size: int, state: Mapping[str, Tensor] | None
) -> nn.Module:
    """The network of a stage.

    Args:
        state: what it begins with; None leaves it as it was drawn.

    Raises:
        UserError: options that cannot be, or weights that do not fit.
    """
    options = {**config.sizes(input_size), "drop_path_rate": config.drop_path_rate}
    model = build_float(config.name, num_classes, options)
    fresh = begin(model, binary, model.state_dict() if state is None else state, str(config.weights))
    if fresh and process_rank() == 0:
        print(f"{config.weights}: {first_few(fresh)} begin(s) anew (another number of classes)")
    return model


def build_teacher(
    config: NetworkConfig, source: str, num_classes: int, input_size: int, state: Mapping[str, Tensor]
) -> nn.Module:
    """The float network that teaches.

    Raises:
        UserError: weights that are binary, or of other classes.
    """
    if scales := [key for key in state if key.endswith(f".{SCALE}")]:
        raise UserError(f"{source} is binary ({first_few(scales, 1)}): a teacher is a float network")
    model = build_float(config.name, num_classes, config.sizes(input_size))
    heads = [value.shape[0] for key, value in state.items() if is_head(key) and key.endswith("weight")]
    if heads and num_classes not in heads:
        raise UserError(f"{source} tells {heads[0]} classes apart and the data have {num_classes}: it cannot teach")
    load_strict(model, state, source)
    return model


class ImageTraining(pl.LightningModule):
    """One step: mix the images, ask the teacher about them, match its distribution."""

    def __init__(
        self,
        network: nn.Module,
        distillation: Distillation | None,
        config: DistillationConfig,
        optim: OptimConfig,
        epochs: int,
        total_batch: int,
        steps_per_epoch: int,
        savings: Savings | None = None,
    ) -> None:
        super().__init__()
        self.network, self.distillation, self.config = network, distillation, config
        self.optim, self.savings = optim, savings or Savings()
        self.lengths = dict(steps_per_epoch=steps_per_epoch, epochs=epochs, global_batch=total_batch)
        classes: Any = network.num_classes
        self.mix = make_mixup(config.mixup, config.cutmix, config.switch_prob, config.smoothing, classes)
        self.accuracy = accuracy_metrics(classes, "val/")

    def on_fit_start(self) -> None:
        """The teacher follows the student to its device; Lightning does not know of it."""
        if self.distillation is not None:
            self.distillation.move(self.device)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K)."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = hardest(self.network, self.losses, *batch, self.savings)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        if self.distillation is None:
            loss = classification_loss(self.network(images), labels, self.config.smoothing)
        else:
            loss = self.distillation(self.network, images)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image (B,), by which `keep_hardest` ranks them."""
        return F.cross_entropy(self.network(images), labels, reduction="none", label_smoothing=self.config.smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.accuracy.update(self.network(batch[0]), batch[1])
        self.log_dict(self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = build(parameter_groups(self.network, self.optim.weight_decay), self.optim, **self.lengths)
        return lightning_dict(sharpened(optimizer, self.savings), schedule)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """The Trainer's, or adaptive."""
        clip_gradients(self, optimizer, self.optim, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """After every optimiser step."""
        step_schedule(scheduler, self.trainer)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """With decay: float and binary weights. Without: what has one dimension, scales, and what timm names."""
    rule = getattr(model, "no_weight_decay", None)
    never = set(rule()) if callable(rule) else set()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    free = {name for name, p in named.items() if p.ndim <= 1 or name in never or name.endswith(f".{SCALE}")}
    groups = [
        {"params": [p for name, p in named.items() if name not in free], "weight_decay": weight_decay},
        {"params": [p for name, p in named.items() if name in free], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--training_seed", type=int, default=0, help="initial weights, drop path and mixing")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    groups = {"network": NetworkConfig, "binary": BinaryConfig, "schedule": ScheduleConfig,
              "distillation": DistillationConfig, "optim": OptimConfig, "data": ImageData, "savings": Savings,
              "ema": EMA}  # fmt: skip
    for name, kind in groups.items():
        parser.add_class_arguments(kind, name)
    parser.set_defaults(RECIPE)
    add_trainer_options(parser, defaults={"max_epochs": 300})


def add_evaluation_arguments(parser: Any) -> None:
    """What an evaluation does besides."""
    parser.add_argument("--packed", action="store_true", help="run the network from bits, as `bivit pack` makes it")
    parser.add_argument("--arch", type=str | None, default=None, help="timm's name of what a file holds")
    by = "how a file without scales is binary: bibert, bivit_mean-w1a1, ..."
    parser.add_argument("--method", type=str | None, default=None, help=by)
    parser.add_argument("--autocast", type=Literal["float16", "bfloat16"] | None, default=None, help="precision")


def plan_of(options: Any) -> list[Stage]:
    """The stages of a run's options."""
    return stages(options.binary, options.schedule.order, trainer_options(options.trainer)["max_epochs"])


def teacher_of(options: Any) -> str | None:
    """Where the teacher's weights are; None where the labels teach.

    Raises:
        UserError: no weights of a teacher.
    """
    config = options.distillation
    if config.loss == "labels":
        return None
    source = config.teacher or options.network.weights
    if source is None:
        raise UserError(
            f"distillation.loss {config.loss} needs a teacher: name its weights with network.weights, from which the "
            "student starts as well, or with distillation.teacher"
        )
    return str(source)


def check(options: Any, run: RunFolder | None) -> None:
    """Refuse what this training cannot take, or not together, before any data are read; the models are built for it.

    Raises:
        UserError: the first of them.
    """
    data, network, config = options.data, options.network, options.distillation
    trainer, plan, teacher = trainer_options(options.trainer), plan_of(options), teacher_of(options)
    mixes, sizes = bool(config.mixup or config.cutmix), data.sizes.sizes
    if mixes and data.batch_size % 2:
        raise UserError(
            f"batch_size {data.batch_size} and mixup or CutMix: images are mixed in pairs, take an even one"
        )
    check_savings(
        options.savings, trainer, ema=options.ema, mixing=mixes, distillation=teacher is not None, sizes=sizes,
        refused=REFUSED,
    )  # fmt: skip
    if config.loss == "directions" and (options.savings.checkpointing or options.savings.compile):
        raise UserError("distillation.loss directions looks into the blocks: leave checkpointing and compile off")
    if len(plan) > 1 and "fsdp" in str(trainer.get("strategy")).lower():
        line = f"strategy {trainer['strategy']} and {len(plan)} stages"
        raise UserError(f"{line}: a stage hands on whole weights; take ddp")
    check_clipping(options.optim, trainer.get("gradient_clip_val"))
    data.sizes.check_length(min(stage.epochs for stage in plan))
    check_architecture(network.name)
    for source in {network.weights, teacher} - {None, "timm"}:
        weight_file(source.replace("{name}", network.name))
    several = len(sizes) > 1
    for stage in plan:
        with torch.device("cpu" if several else "meta"):
            model = build_student(network, stage.binary, data.num_classes, data.input_size, None)
        if config.loss == "directions":
            attention_names(model)
        apply(model, replace(options.savings, compile=False))
        build(parameter_groups(model, options.optim.weight_decay), options.optim, 1, stage.epochs, global_batch=1)
        if several:
            check_sizes(model, sizes)


def train(run: RunFolder, options: Any, resuming: bool) -> nn.Module:
    """Train every stage to its end, or go on where the run was; `model/` (last) and `best/` are folders."""
    start, data, network = time.monotonic(), options.data, options.network
    plan, source = plan_of(options), teacher_of(options)
    classes, size = data.num_classes, data.input_size
    state = None if network.weights is None else read_start(network.name, network.weights, network.trust_pickle)
    distillation = None
    if source is not None:
        known = (
            state
            if source == network.weights and state is not None
            else read_start(network.name, source, network.trust_pickle)
        )
        teacher = build_teacher(network, source, classes, size, known)
        distillation = Distillation(teacher, options.distillation.loss == "directions")
    measured: dict[str, dict[str, float]] = {}
    data_seed = data.seed
    for number, stage in enumerate(plan):
        done = run.path / "stages" / stage.name / DONE
        if not done.is_file():
            model = train_stage(run, options, number, data_seed, stage, state, distillation, done, resuming)
            state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
        else:
            state = read_weights(done)
        if process_rank() == 0:
            measured[stage.name] = json.loads(read_metadata(done)["measured"])
    assert state is not None
    model = build_student(network, plan[-1].binary, classes, size, state)
    if process_rank() == 0:
        finish(run, model, options, plan, measured, time.monotonic() - start)
    return model


def train_stage(
    run: RunFolder,
    options: Any,
    number: int,
    data_seed: int,
    stage: Stage,
    state: Mapping[str, Tensor] | None,
    distillation: Distillation | None,
    done: Path,
    resuming: bool,
) -> nn.Module:
    """One stage, from the weights of the one before or from its own checkpoint; its order of images is its own."""
    data, given = options.data, trainer_options(options.trainer)
    seed = seed_of(options.training_seed, number)
    data.seed = seed_of(data_seed, number)
    pl.seed_everything(options.training_seed, workers=False, verbose=False)
    model = build_student(options.network, stage.binary, data.num_classes, data.input_size, state)
    apply(model, options.savings)
    trainer = make_trainer(
        done.parent,
        {**given, "max_epochs": stage.epochs},
        seed,
        resume_with=f"bivit train --resume {run.path}",
        save_every=options.save_every,
        best="val/acc1",
        averaging=callbacks(options.ema),
        csv=True,
    )
    data.trainer = trainer
    data.setup()
    accumulated = trainer.accumulate_grad_batches
    steps = max(1, -(-data.steps_per_epoch // accumulated))  # Lightning steps with what remains of an epoch as well
    total = data.batch_size * trainer.world_size * accumulated
    training = ImageTraining(
        model, distillation, options.distillation, options.optim, stage.epochs, total, steps, options.savings
    )
    fit(trainer, training, data, resuming)
    if process_rank() == 0:
        found = {key: 100 * v for key, v in last_evaluation(trainer).items() if key.startswith("val/")}
        save_weights(done, model.state_dict(), {"measured": json.dumps(found)})
    return model


def finish(
    run: RunFolder,
    model: nn.Module,
    options: Any,
    plan: list[Stage],
    measured: Mapping[str, Mapping[str, float]],
    seconds: float,
) -> None:
    """Write model/, best/ (of the last stage) and metrics.json, with operations and bytes beside the accuracy."""
    network, data, last = options.network, options.data, plan[-1]
    sizes = network.sizes(data.input_size)
    saved = BinaryClassifier(network.name, data.num_classes, asdict(last.binary), sizes)
    load_strict(saved, model.state_dict(), str(run.path))
    save_last_and_best(saved, run.path, run.path / "stages" / last.name)
    book = ledger(model.cpu(), (3, data.input_size, data.input_size))
    extra = {"stages": [{**asdict(stage), "measured": measured[stage.name]} for stage in plan],
             "optim": asdict(options.optim), "distillation": asdict(options.distillation),
             "ledger": book.as_dict()}  # fmt: skip
    record(run.path, "bivit", "last", measured[last.name], options.training_seed, seconds, costs(book), extra)
    print(f"{run.path}: model/ (last), best/ (highest validation accuracy); evaluate: bivit eval --ckpt {run.path}")


def costs(book: Ledger) -> Costs:
    """Operations of an image by the paper's rule, and bytes when packed, the rest at 16 bits; as it is built."""
    return [("operations", book.ops_as_built / 1e9, "G"), ("packed", book.bytes_as_built(2) / 1e6, "MB")]


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Accuracy, operations and bytes of a run's last weights, or of --ckpt FILE_OR_FOLDER, on the test images."""
    start, data = time.monotonic(), options.data
    weights = weights_of(run, options.ckpt)
    sizes = options.network.sizes(data.input_size) if weights.is_file() else None
    model = load_classifier(weights, options.trust_pickle, options.arch, options.method, sizes)
    classes: Any = model.num_classes
    book = None if runs_on_bits(model) else ledger(model, (3, data.input_size, data.input_size))
    on_bits = options.packed or book is None
    model = packed(model) if on_bits else model
    data.use_head(classes)
    data.setup()
    seen = torch.zeros(classes, dtype=torch.long)

    def count(module: nn.Module, args: Any, logits: Tensor) -> None:
        seen.add_(logits.argmax(1).cpu().bincount(minlength=classes))

    model.register_forward_hook(count)
    found = measured_accuracy(model, data.test_dataloader(), classes, device(options.device), options.autocast)
    spent = costs(book) if book is not None else [("packed", weight_file(weights).stat().st_size / 1e6, "MB")]
    told(str(options.ckpt if run is None else run.path), found, spent)
    if classes > 1 and int(seen.max()) == int(seen.sum()):
        print(f"note: class {int(seen.argmax())} for all {int(seen.sum())} images: a network that has collapsed")
    seconds, arm = time.monotonic() - start, "packed" if on_bits else "last"
    record(Path(options.output), "bivit", arm, found, options.training_seed, seconds, spent)


def add_figure_arguments(parser: Any) -> None:
    """What the figures of a network are drawn from."""
    parser.add_argument("--images", type=list[str] | None, default=None, help="image files")


def figures(run: RunFolder | None, options: Any) -> list[Path]:
    """Validation accuracy by epoch of a run; with images also scales, and how much gradient passes each sign."""
    weights = weights_of(run, options.run)
    target = Path(options.output or (weights.parent if run is None else run.path) / "figures")
    drawn: dict[str, Figure] = {} if run is None else {"accuracy": draw_curve(run.path)}
    if options.images:
        model = load_classifier(weights)
        size = run.read_config()["data"]["input_size"] if run is not None else 224
        pictures = read_images(options.images, size)
        for name, draw in figures_of_student(model, pictures, weights.parent.name).items():
            drawn[name] = draw()
    if not drawn:
        raise UserError(f"{weights} lies in no run: its figures need --images FILE...")
    for name, drawing in drawn.items():
        save_figure(drawing, target / f"{name}.png")
    return [target / f"{name}.png" for name in drawn]


def draw_curve(run: Path) -> Figure:
    """Accuracy after each epoch over all stages, the end of the first marked."""
    values: list[float] = []
    lengths: list[int] = []
    for table in sorted(run.glob("stages/*/csv/metrics.csv")):
        with table.open(newline="") as file:
            found = [100 * float(row["val/acc1"]) for row in csv.DictReader(file) if row.get("val/acc1")]
        values, lengths = values + found, [*lengths, len(found)]
    border = float(lengths[0]) if len(lengths) > 1 else None
    return draw_curves({run.name: values}, border, "Accuracy as the network becomes binary")
