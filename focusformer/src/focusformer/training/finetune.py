"""Fine-tune one sub-network, cut out of its supernet, on real images: the same data, or others with other classes.

Options: --network.* the supernet and its architecture, or an extracted sub-network, --mixing.* the loss, --optim.*
optimiser and schedule, --data.* the images, --savings.* and --ema.* the survey's savings, --trainer.* Lightning's
Trainer. The result is a folder of `focusformer.StaticViT`, which needs no supernet. The paper inherits its weights and
does without; ShiftNAS reports that 40 further epochs change 0.2 points at most.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from focusformer.models.folders import load_subnet
from focusformer.models.released import read_architecture
from focusformer.models.static_vit import StaticViT
from focusformer.training.recipe import MixingConfig, parameter_groups
from paperkit.command.engines import device
from paperkit.data.images import ImageData
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank, weights_of
from paperkit.files.weights import load_strict
from paperkit.results.record import record, told
from paperkit.training import savings as switches
from paperkit.training.classification import accuracy_metrics, classification_loss, make_mixup, measured_accuracy
from paperkit.training.optim import OptimConfig, build, check_clipping, clip_gradients, lightning_dict, step_schedule
from paperkit.training.switches import apply, callbacks, hardest, sharpened
from paperkit.training.trainer import (
    add_trainer_options,
    fit,
    last_evaluation,
    make_trainer,
    save_last_and_best,
    trainer_options,
)

RECIPE = {"optim.lr": 5e-5, "optim.lr_per_512": True, "optim.warmup_epochs": 5, "optim.warmup_lr": 1e-6,
          "optim.min_lr": 1e-6}  # fmt: skip
"""Ours: a tenth of the supernet's rate."""
REFUSED = {
    "attention": "relative position is part of each attention",
    "patch_drop": "relative positions need the whole grid of tokens",
}


@dataclass
class NetworkConfig:
    """The sub-network.

    Args:
        weights: a run or folder of a supernet, a file under the official keys, or an extracted sub-network.
        architecture: of a supernet: one-line text, AutoFormer-T, -S, -B, or a .json file in AutoFormer's form.
        space: of a file: ti, s, b or a YAML file, where its shapes do not tell.
        drop_path_rate: stochastic depth of the last layer.
        trust_pickle: read weights whose file may run code.
    """

    weights: str | None = None
    architecture: str | None = None
    space: str | None = None
    drop_path_rate: float = 0.1
    trust_pickle: bool = False

    def build(self, num_classes: int, input_size: int) -> StaticViT:
        """The network with the weights that it starts from; its head begins anew where the classes are others.

        Raises:
            UserError: no weights, or those of another image size.
        """
        if self.weights is None:
            raise UserError("network.weights: name the run of a supernet, or a folder of `focusformer extract`")
        chosen = None if self.architecture is None else read_architecture(self.architecture)
        start = load_subnet(self.weights, chosen, self.trust_pickle, self.space)
        if start.img_size != input_size:
            raise UserError(f"{self.weights} is for images of {start.img_size} px; data.input_size is {input_size}")
        changes = {"num_classes": num_classes, "drop_path_rate": self.drop_path_rate}
        config = dict(getattr(start, "_hub_mixin_config", None) or {})
        model, state = StaticViT(**{**config, **changes}), start.state_dict()
        if start.num_classes != num_classes:
            state |= {f"head.{key}": value for key, value in model.head.state_dict().items()}
            if process_rank() == 0:
                print(f"{self.weights}: the head begins anew, with {num_classes} classes for {start.num_classes}")
        load_strict(model, state, self.weights)
        return model


class FineTuning(pl.LightningModule):
    """One step: mix, forward, cross entropy."""

    def __init__(
        self, network: StaticViT, mixing: MixingConfig, optim: OptimConfig, lengths: dict[str, int], savings: Any
    ) -> None:
        super().__init__()
        self.network, self.mixing, self.optim, self.lengths, self.savings = network, mixing, optim, lengths, savings
        classes = network.num_classes
        self.mix = make_mixup(mixing.mixup, mixing.cutmix, mixing.switch_prob, mixing.smoothing, classes)
        self.accuracy = accuracy_metrics(classes, "val/")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = hardest(self.network, self.losses, *batch, self.savings)
        images, labels = (images, labels) if self.mix is None else self.mix(images, labels)
        loss = classification_loss(self.network(images), labels, self.mixing.smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image (B,), by which `keep_hardest` ranks them."""
        return F.cross_entropy(self.network(images), labels, reduction="none", label_smoothing=self.mixing.smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.accuracy.update(self.network(batch[0]), batch[1])
        self.log_dict(self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.network, self.optim.weight_decay)
        optimizer, schedule = build(groups, self.optim, **self.lengths)
        return lightning_dict(sharpened(optimizer, self.savings), schedule)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """The Trainer's, or adaptive."""
        clip_gradients(self, optimizer, self.optim, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """After every step."""
        step_schedule(scheduler, self.trainer)


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--training_seed", type=int, default=0, help="new head, drop path and mixing")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    for name, kind in {
        "network": NetworkConfig, "mixing": MixingConfig, "optim": OptimConfig, "data": ImageData,
        "savings": switches.Savings, "ema": switches.EMA,
    }.items():  # fmt: skip
        parser.add_class_arguments(kind, name)
    parser.set_defaults(RECIPE)
    add_trainer_options(parser, defaults={"max_epochs": 40})


def check(options: Any, run: RunFolder | None) -> None:
    """Refuse what this training cannot take, or not together, before any data are read.

    Raises:
        UserError: the first of them.
    """
    data, trainer, mixing = options.data, trainer_options(options.trainer), options.mixing
    mixing.check(data.batch_size)
    if len(data.sizes.sizes) > 1:
        raise UserError("data.size_schedule: positions of a sub-network are those of one image size")
    mixes = bool(mixing.mixup or mixing.cutmix)
    switches.check(options.savings, trainer, ema=options.ema, mixing=mixes, refused=REFUSED)
    check_clipping(options.optim, trainer.get("gradient_clip_val"))
    if run is None or not (run.path / "checkpoints" / "last.ckpt").exists():
        model = options.network.build(data.num_classes, data.input_size)
        apply(model, replace(options.savings, compile=False))
        build(parameter_groups(model, 0.0), options.optim, 1, trainer["max_epochs"], global_batch=1)


def train(run: RunFolder, options: Any, resuming: bool) -> FineTuning:
    """Train to the end, or from the last checkpoint; `model/` (last) and `best/` are folders of save_pretrained."""
    start, data, seed = time.monotonic(), options.data, options.training_seed
    pl.seed_everything(seed, workers=False, verbose=False)
    model = options.network.build(data.num_classes, data.input_size)
    apply(model, options.savings)
    given = trainer_options(options.trainer)
    trainer = make_trainer(
        run.path, given, seed, resume_with=f"focusformer train --resume {run.path}", save_every=options.save_every,
        best="val/acc1", averaging=callbacks(options.ema), csv=True,
    )  # fmt: skip
    data.trainer = trainer
    data.setup()
    accumulated = trainer.accumulate_grad_batches
    lengths = dict(
        steps_per_epoch=max(1, -(-data.steps_per_epoch // accumulated)),
        epochs=given["max_epochs"],
        global_batch=data.batch_size * trainer.world_size * accumulated,
    )
    training = FineTuning(model, options.mixing, options.optim, lengths, options.savings)
    fit(trainer, training, data, resuming)
    if process_rank() == 0:
        save_last_and_best(model.cpu(), run.path)
        found = {key: 100 * value for key, value in last_evaluation(trainer).items() if key.startswith("val/")}
        extra = {"architecture": str(model.architecture), "optim": asdict(options.optim), "lengths": lengths}
        record(run.path, "focusformer", "fine-tuned", found, seed, time.monotonic() - start, spent(model), extra)
        print(f"{run.path}: model/ (last), best/; evaluate: focusformer eval --ckpt {run.path}")
    return training


def spent(model: torch.nn.Module) -> list[tuple[str, float, str]]:
    """What the network holds."""
    return [("parameters", sum(p.numel() for p in model.parameters()) / 1e6, "M")]


def add_evaluation_arguments(parser: Any) -> None:
    """What an evaluation does besides."""
    parser.add_argument("--autocast", type=Literal["float16", "bfloat16"] | None, default=None, help="precision")


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Test accuracy of a run's last weights, or of a sub-network's folder."""
    start, data = time.monotonic(), options.data
    network = options.network
    chosen = None if network.architecture is None or run is not None else read_architecture(network.architecture)
    model = load_subnet(weights_of(run, options.ckpt), chosen, options.trust_pickle, network.space)
    data.use_head(model.num_classes)
    data.setup()
    batches = data.test_dataloader()
    found = measured_accuracy(model, batches, model.num_classes, device(options.device), options.autocast)
    told(str(options.ckpt if run is None else run.path), found, spent(model))
    seconds = time.monotonic() - start
    record(Path(options.output), "focusformer", "last", found, options.training_seed, seconds, spent(model))
