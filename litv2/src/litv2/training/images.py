"""A classifier trained on real images by the paper's recipe: from a config file to a finished run folder."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from litv2.models.classifier import LITv2
from litv2.models.pyramid import architecture
from litv2.models.released import fit_released, read_released
from litv2.training.recipe import OfficialSchedule, Recipe, make_optimizer
from paperkit.data.images import ImageData
from paperkit.data.resumable import SeedStep
from paperkit.data.sizes import check_sizes
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank
from paperkit.files.weights import load_report, load_strict, read_checkpoint
from paperkit.results.metrics import Metrics, Row
from paperkit.training.checkpoint_io import AtomicCheckpointIO
from paperkit.training.classification import accuracy_metrics, classification_loss, make_mixup
from paperkit.training.guard import SaveOnSignal, StopOnNaN
from paperkit.training.optim import check_name
from paperkit.training.savings import EMA, Savings, check
from paperkit.training.switches import apply, callbacks, hardest, sharpened


@dataclass
class NetworkConfig:
    """The classifier.

    Args:
        name: published size: litv2_s, litv2_m, litv2_b, litv2_b_384, litv1_s, litv1_m, litv1_b.
        options: constructor arguments in place of the size's (alpha, local_ws, attention, pos, drop_path_rate, ...).
        weights: file or none to start from; a classifier of another number of classes is replaced by a fresh one.
    """

    name: str = "litv2_s"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


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
    try:
        model = LITv2(**options)
    except TypeError as error:
        raise UserError(f"network.options: {error}") from None
    if config.weights:
        state = fit_released(read_released(config.weights), model)
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
        """Loss of each image (B,), by which ``keep_hardest`` ranks them."""
        return F.cross_entropy(self.network(images), labels, reduction="none", label_smoothing=self.mixing.smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        images, labels = batch
        self.accuracy.update(self.network(images), labels)
        self.log_dict(self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = sharpened(make_optimizer(self.network, self.recipe), self.savings)
        schedule = OfficialSchedule(optimizer, self.recipe, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """After every optimiser step, as the authors call ``step_update``."""
        scheduler.step()


def train(
    run: RunFolder,
    network: NetworkConfig,
    recipe: Recipe,
    mixing: MixingConfig,
    data: ImageData,
    trainer_options: dict[str, Any],
    seed: int,
    save_every: int,
    resume: bool,
    savings: Savings | None = None,
    ema: EMA | None = None,
) -> ImageTraining:
    """Train to the end, or from the last checkpoint; ``model/`` (last) and ``best/`` are folders of save_pretrained."""
    savings, ema = savings or Savings(), ema or EMA()
    last = run.path / "checkpoints" / "last.ckpt"
    resuming = resume and last.exists()
    pl.seed_everything(seed, workers=False, verbose=False)
    model = build_classifier(network, data.num_classes, data.input_size)
    apply(model, savings)
    options = {**trainer_options, "max_epochs": recipe.epochs}
    trainer = build_trainer(run, options, seed, save_every, averaging=callbacks(ema))
    data.trainer = trainer
    data.setup()
    accumulate = trainer.accumulate_grad_batches
    total_batch = data.batch_size * trainer.world_size * accumulate
    steps = max(1, -(-data.steps_per_epoch // accumulate))  # Lightning steps with what remains of an epoch as well
    training = ImageTraining(model, recipe, mixing, total_batch, steps, savings)
    start = time.monotonic()
    trainer.fit(training, datamodule=data, ckpt_path=last if resuming else None)
    if process_rank() == 0:
        finish(run, training, seed, time.monotonic() - start)
    return training


REFUSED = {"patch_drop": "windows, pooling and merging need the whole grid of tokens"}


def check_savings(
    network: NetworkConfig,
    savings: Savings,
    ema: EMA,
    recipe: Recipe,
    mixing: MixingConfig,
    data: ImageData,
    trainer: dict[str, Any],
) -> None:
    """Refuse what this training cannot take, or not together, before any data are read; the model is built for it.

    Raises:
        UserError: the first of them.
    """
    mixes = bool(mixing.mixup or mixing.cutmix)
    check(savings, trainer, ema=ema, mixing=mixes, sizes=data.sizes.sizes, refused=REFUSED)
    data.sizes.check_length(recipe.epochs)
    check_name(recipe.optimizer)
    several = len(data.sizes.sizes) > 1
    with torch.device("cpu" if several else "meta"):  # the sampling of the merges does not run on the meta device
        model = build_classifier(replace(network, weights=None), data.num_classes, data.input_size)
    apply(model, savings)
    if several:
        check_sizes(model, data.sizes.sizes)


def finish(run: RunFolder, training: ImageTraining, seed: int, seconds: float) -> None:
    """Write model/, best/ and metrics.json."""
    network = training.network
    network.save_pretrained(run.path / "model")
    found = {key: float(value) for key, value in training.trainer.callback_metrics.items() if key.startswith("val/")}
    rows = [Row("last", key, [100 * value], "%") for key, value in found.items()]
    best = run.path / "checkpoints" / "best.ckpt"
    if best.exists():
        kept = read_checkpoint(best)["state_dict"]
        state = {key.removeprefix("network."): value for key, value in kept.items() if key.startswith("network.")}
        last = {key: value.clone() for key, value in network.state_dict().items()}
        load_strict(network, state, str(best))
        network.save_pretrained(run.path / "best")
        network.load_state_dict(last)
    if rows:
        Metrics("litv2", "litv2 train", [seed], seconds, rows, extra={"recipe": asdict(training.recipe)}).write(
            run.path / "metrics.json"
        )


def build_trainer(
    run: RunFolder,
    options: dict[str, Any],
    seed: int,
    save_every: int,
    best: str = "val/acc1",
    averaging: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Lightning's Trainer with what every run needs: seeded steps, whole checkpoints, a clean end."""
    folder = run.path / "checkpoints"
    return pl.Trainer(
        **options,
        default_root_dir=run.path,
        logger=TensorBoardLogger(run.path, "", "tensorboard"),
        callbacks=[
            SeedStep(seed),
            StopOnNaN(),
            *averaging,
            SaveOnSignal(f"litv2 train --resume {run.path}"),
            ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=save_every),
            ModelCheckpoint(folder, filename="best", monitor=best, mode="max", enable_version_counter=False),
            LearningRateMonitor(logging_interval="step"),
        ],
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


@torch.no_grad()
def evaluate(model: LITv2, data: ImageData, device: str = "cpu") -> dict[str, float]:
    """Top-1 and top-5 of the test split, in percent."""
    data.setup()
    accuracy = accuracy_metrics(model.num_classes).to(device)
    model = model.to(device).eval()
    for images, labels in data.test_dataloader():
        accuracy.update(model(images.to(device)), labels.to(device))
    return {key: 100 * float(value) for key, value in accuracy.compute().items()}


def folder_of(run: Path) -> Path:
    """The weights of an image run that eval takes: the last ones."""
    if not (run / "model").is_dir():
        raise UserError(f"{run} has no model/ folder: the run is not finished")
    return run / "model"
