"""Train a classifier on real images by the paper's recipe.

Options: --network.* the model, --recipe.* optimiser and schedule, --mixing.* mixup and CutMix, --data.* the images,
--savings.* and --ema.* the survey's savings, --trainer.* Lightning's Trainer (devices, num_nodes, strategy, ...).
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from litv2.figures.of_a_network import draw_pyramid
from litv2.models.classifier import LITv2
from litv2.models.conversion import CLASSES, build, load_classifier, saved_classes
from litv2.models.images import read_images
from litv2.models.pyramid import PlainOption, architecture
from litv2.models.released import fit_released, read_released
from litv2.training.recipe import Recipe, make_optimizer
from litv2.training.results import report
from paperkit.command.engines import device
from paperkit.data.images import ImageData
from paperkit.data.layouts import imagenet_classes
from paperkit.data.sizes import check_sizes
from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.runs import RunFolder, process_rank, weights_of
from paperkit.files.weights import load_report, load_strict
from paperkit.results.record import record
from paperkit.training.classification import accuracy_metrics, classification_loss, make_mixup, measured_accuracy
from paperkit.training.optim import check_name, lightning_dict, step_schedule
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


@dataclass
class NetworkConfig:
    """The classifier.

    Args:
        name: published size: litv2_s, litv2_m, litv2_b, litv2_b_384, litv1_s, litv1_m, litv1_b.
        options: constructor arguments in place of the size's (alpha, local_ws, attention, pos, drop_path_rate, ...).
        weights: file or none to start from; a classifier of another number of classes is replaced by a fresh one.
        part: which of several state dicts in that file (`teacher`, `model_ema`, ...).
    """

    name: str = "litv2_s"
    options: dict[str, PlainOption] = field(default_factory=dict)
    weights: str | None = None
    part: str | None = None


@dataclass
class MixingConfig:
    """Mixing of images and smoothing of labels; the defaults are the paper's.

    Args:
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of CutMix; 0 is off.
        switch_prob: share of batches that get CutMix where both are on.
        smoothing: label smoothing.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.1


def build_classifier(config: NetworkConfig, num_classes: int, input_size: int) -> LITv2:
    """The network with its starting weights.

    Raises:
        UserError: unknown options, or weights that do not fit.
    """
    options = {**architecture(config.name), "img_size": input_size, **config.options, "num_classes": num_classes}
    if (channels := options.get("in_chans", 3)) != 3:
        raise UserError(f"network.options: in_chans {channels}, but the images are read with 3 channels, grey ones too")
    model = build(options, "network.options")
    if config.weights:
        state = fit_released(read_released(config.weights, part=config.part, part_advice="--network.part"), model)
        head = state.get("head.weight")
        if head is not None and head.shape[0] != num_classes:
            state = {key: value for key, value in state.items() if not key.startswith("head.")}
            report = load_report(model, state)
            if report.unexpected or report.misshapen or set(report.missing) != {"head.weight", "head.bias"}:
                raise UserError(f"{config.weights} does not fit {config.name}: {report.message()}")
        else:
            load_strict(model, state, config.weights)
    return model


class ImageTraining(pl.LightningModule):
    """One step: mix, forward, soft-target cross entropy; AdamW in three groups under the authors' schedule."""

    def __init__(
        self,
        network: LITv2,
        recipe: Recipe,
        mixing: MixingConfig,
        total_batch: int,
        steps_per_epoch: int,
        savings: Savings | None = None,
    ) -> None:
        super().__init__()
        self.network, self.mixing, self.savings = network, mixing, savings or Savings()
        self.recipe = recipe.scaled(total_batch)
        self.steps_per_epoch = steps_per_epoch
        classes = network.num_classes
        self.mix = make_mixup(mixing.mixup, mixing.cutmix, mixing.switch_prob, mixing.smoothing, classes)
        self.accuracy = accuracy_metrics(classes, "val/")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K)."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = hardest(self.network, self.losses, *batch, self.savings)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        loss = classification_loss(self.network(images), labels, self.mixing.smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image (B,), by which `keep_hardest` ranks them."""
        return F.cross_entropy(self.network(images), labels, reduction="none", label_smoothing=self.mixing.smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        images, labels = batch
        self.accuracy.update(self.network(images), labels)
        self.log_dict(self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = make_optimizer(self.network, self.recipe, self.steps_per_epoch)
        return lightning_dict(sharpened(optimizer, self.savings), schedule)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """After every optimiser step, as the authors call `step_update`."""
        step_schedule(scheduler, self.trainer)


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--training_seed", type=int, default=0, help="initial weights, drop path and mixing")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    parser.add_class_arguments(NetworkConfig, "network")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(MixingConfig, "mixing")
    parser.add_class_arguments(ImageData, "data")
    parser.add_class_arguments(Savings, "savings")
    parser.add_class_arguments(EMA, "ema")
    add_trainer_options(parser)


def add_evaluation_arguments(parser: Any) -> None:
    """What tells the weights of a file apart."""
    parser.add_argument("--part", type=str | None, default=None, help="which of several state dicts in --ckpt")


REFUSED = {"patch_drop": "windows, pooling and merging need the whole grid of tokens"}


def check(options: Any, run: RunFolder | None) -> None:
    """Refuse what this training cannot take, or not together, before any data are read; the model is built for it.

    Raises:
        UserError: the first of them.
    """
    data, mixing = options.data, options.mixing
    mixes = bool(mixing.mixup or mixing.cutmix)
    trainer = trainer_options(options.trainer)
    check_savings(options.savings, trainer, ema=options.ema, mixing=mixes, sizes=data.sizes.sizes, refused=REFUSED)
    data.sizes.check_length(options.recipe.epochs)
    check_name(options.recipe.optimizer)
    several = len(data.sizes.sizes) > 1
    with torch.device("cpu" if several else "meta"):  # the sampling of the merges does not run on the meta device
        model = build_classifier(replace(options.network, weights=None), data.num_classes, data.input_size)
    apply(model, options.savings)
    if several:
        check_sizes(model, data.sizes.sizes)


def train(run: RunFolder, options: Any, resuming: bool) -> ImageTraining:
    """Train to the end, or from the last checkpoint; `model/` (last) and `best/` are folders of save_pretrained."""
    data, recipe, seed = options.data, options.recipe, options.training_seed
    pl.seed_everything(seed, workers=False, verbose=False)
    model = build_classifier(options.network, data.num_classes, data.input_size)
    apply(model, options.savings)
    trainer = make_trainer(
        run.path,
        {**trainer_options(options.trainer), "max_epochs": recipe.epochs},
        seed,
        resume_with=f"litv2 train --resume {run.path}",
        save_every=options.save_every,
        best="val/acc1",
        averaging=callbacks(options.ema),
    )
    data.trainer = trainer
    data.setup()
    accumulate = trainer.accumulate_grad_batches
    total_batch = data.batch_size * trainer.world_size * accumulate
    steps = max(1, -(-data.steps_per_epoch // accumulate))  # Lightning steps with what remains of an epoch as well
    training = ImageTraining(model, recipe, options.mixing, total_batch, steps, options.savings)
    start = time.monotonic()
    fit(trainer, training, data, resuming)
    if process_rank() == 0:
        finish(run, training, data, seed, time.monotonic() - start)
    return training


def finish(run: RunFolder, training: ImageTraining, data: ImageData, seed: int, seconds: float) -> None:
    """Write model/, best/, metrics.json, and the names of the classes where they are not ImageNet's."""
    network = training.network
    if data.class_names is not None and data.class_names != imagenet_classes():
        write_atomic(run.path / CLASSES, json.dumps(data.class_names, ensure_ascii=False) + "\n")
    save_last_and_best(network, run.path)
    found = {k: 100 * v for k, v in last_evaluation(training.trainer).items() if k.startswith("val/")}
    record(run.path, "litv2", "last", found, seed, seconds, extra={"recipe": asdict(training.recipe)})
    print(f"{run.path}: model/ (last), best/ (highest validation accuracy); evaluate: litv2 eval --ckpt {run.path}")


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Accuracy of a run's last weights, or of --ckpt FILE_OR_FOLDER, on the test images of the options."""
    start, weights = time.monotonic(), weights_of(run, options.ckpt)
    model = load_classifier(weights, options.trust_pickle, options.part)
    options.data.use_head(model.num_classes, saved_classes(weights))
    options.data.setup()
    found = measured_accuracy(model, options.data.test_dataloader(), model.num_classes, device(options.device))
    title = str(options.ckpt if run is None else run.path)
    report(Path(options.output), "last", title, found, options.training_seed, time.monotonic() - start)


def add_figure_arguments(parser: Any) -> None:
    """What the figures of a classifier are drawn from."""
    parser.add_argument("--image", type=str | None, default=None, help="image file")
    parser.add_argument("--size", type=int, default=224, help="side of its centre crop in pixels, a multiple of 32")
    parser.add_argument(
        "--cell", type=tuple[int, int] | None, default=None, help="token of the last map: [row, column]"
    )


def figures(run: RunFolder | None, options: Any) -> list[Path]:
    """Spectra of Hi-Fi and Lo-Fi, attention of one token, and where one token of the last map samples the image."""
    weights = weights_of(run, options.run)
    if options.image is None:
        raise UserError(f"{weights} is a classifier: its figures need --image FILE")
    if options.size < 32 or options.size % 32:
        raise UserError(f"--size {options.size} is no multiple of 32 px")
    image = read_images([options.image], options.size)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    picture = (image[0] * std + mean).clamp(0, 1).permute(1, 2, 0)
    model = load_classifier(weights, img_size=options.size)
    target = Path(options.output or (weights if run is None else run.path) / "figures")
    return draw_pyramid(model, image, picture, options.cell, target)
