"""Train RetinaNet or Mask R-CNN on COCO by the paper's 1x schedule, on torchvision's detectors.

Options: --detection.* detector and recipe, --data.* the COCO folder, --trainer.* Lightning's Trainer.

AdamW, linear warm-up over 500 iterations from a thousandth of the rate, a tenth of it from epochs 8 and 11 on, 12
epochs of batch 16. RetinaNet decays every parameter (the authors' rule for norms is misspelt, so norms are decayed);
Mask R-CNN leaves those with "norm" in their name out.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from litv2.models.detectors import Detector, build_detector
from litv2.models.pyramid import PlainOption
from litv2.training.results import report
from paperkit.command.engines import device
from paperkit.data.coco import CocoData, Sample
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank
from paperkit.files.weights import load_strict, read_weights, save_weights
from paperkit.results.record import record
from paperkit.training.detection import Detections, average_precisions, log_average_precision, stepped_adamw
from paperkit.training.trainer import add_trainer_options, fit, last_evaluation, make_trainer, trainer_options

WEIGHTS = "detector.safetensors"


@dataclass
class DetectionConfig:
    """Detector and recipe.

    Args:
        detector: retinanet or mask_rcnn.
        name: published size of the backbone.
        window: HiLo window of stage 3, 2 or 4 in the paper.
        weights: file whose backbone is loaded; the paper starts from the ImageNet classifier.
        drop_path_rate: 0.2 for S and M, 0.3 for B.
        grad_checkpointing: on for B in the paper.
        lr: 1e-4 for RetinaNet, 2e-4 for Mask R-CNN.
        weight_decay: of AdamW.
        decay_norms: whether parameters with "norm" in their name are decayed.
        epochs: length.
        milestones: epochs after which the rate falls to a tenth.
        warmup_iters, warmup_factor: linear warm-up.
        min_size, max_size: of the resized image.
        options: changes of the backbone's size.
        part: which of several state dicts in the file of weights.
    """

    detector: Detector = "retinanet"
    name: str = "litv2_s"
    window: int = 2
    weights: str | None = None
    drop_path_rate: float = 0.2
    grad_checkpointing: bool = False
    lr: float = 1e-4
    weight_decay: float = 1e-4
    decay_norms: bool = True
    epochs: int = 12
    milestones: tuple[int, ...] = (8, 11)
    warmup_iters: int = 500
    warmup_factor: float = 1e-3
    min_size: int = 800
    max_size: int = 1333
    options: dict[str, PlainOption] = field(default_factory=dict)
    part: str | None = None


def parameter_groups(model: nn.Module, config: DetectionConfig) -> list[dict[str, Any]]:
    """AdamW's groups."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = [p for name, p in named if "norm" in name and not config.decay_norms]
    decayed = [p for name, p in named if "norm" not in name or config.decay_norms]
    groups = [dict(params=decayed, weight_decay=config.weight_decay)]
    return groups + ([dict(params=free, weight_decay=0.0)] if free else [])


class DetectionTraining(pl.LightningModule):
    """One step: the detector's own losses, summed; validation: COCO's average precision."""

    def __init__(self, config: DetectionConfig, data: CocoData, steps_per_epoch: int) -> None:
        super().__init__()
        self.config, self.data, self.steps_per_epoch = config, data, steps_per_epoch
        self.detector = build_detector(
            config.detector, config.name, config.window, data.num_classes, config.weights, config.drop_path_rate,
            config.grad_checkpointing, config.options, config.min_size, config.max_size, config.part,
        )  # fmt: skip
        self.first_label = 0 if config.detector == "retinanet" else 1
        self.judge = Detections(self.first_label, config.detector == "mask_rcnn")

    def training_step(self, batch: list[Sample], batch_index: int) -> Tensor:
        targets = [{**t, "labels": t["labels"] - 1 + self.first_label} for _, t in batch]
        losses = self.detector([image for image, _ in batch], targets)
        loss = torch.stack(list(losses.values())).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: list[Sample], batch_index: int) -> None:
        self.judge.add(self.data.val_images, batch, self.detector([image for image, _ in batch]))

    def on_validation_epoch_end(self) -> None:
        """Average precision over all processes' detections."""
        log_average_precision(self, self.judge.judged(self.data.val_images, self.trainer.world_size))

    def configure_optimizers(self) -> Any:
        c = self.config
        groups = parameter_groups(self.detector, c)
        return stepped_adamw(groups, c.lr, self.steps_per_epoch, c.milestones, c.warmup_iters, c.warmup_factor)


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--training_seed", type=int, default=0, help="initial weights and drop path")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    parser.add_class_arguments(DetectionConfig, "detection")
    parser.add_class_arguments(CocoData, "data")
    add_trainer_options(parser)


def add_evaluation_arguments(parser: Any) -> None:
    """What tells the weights of a file apart."""
    parser.add_argument("--part", type=str | None, default=None, help="which of several state dicts in --ckpt")


def check(options: Any, run: RunFolder | None) -> None:
    """Read the annotations, and build the detector without its numbers, before there is a run folder.

    Raises:
        UserError: the first thing that cannot be.
    """
    data, config = options.data, options.detection
    data.masks = config.detector == "mask_rcnn"
    data.setup()
    with torch.device("meta"):
        DetectionTraining(replace(config, weights=None), data, 1)


def train(run: RunFolder, options: Any, resuming: bool) -> DetectionTraining:
    """Train to the end, or from the last checkpoint; writes the weights and the average precision."""
    config, data, seed = options.detection, options.data, options.training_seed
    pl.seed_everything(seed, workers=False, verbose=False)
    trainer = make_trainer(
        run.path,
        {**trainer_options(options.trainer), "max_epochs": config.epochs},
        seed,
        resume_with=f"litv2 train --resume {run.path}",
        save_every=options.save_every,
        best="val/box_AP",
    )
    data.trainer = trainer
    data.setup()
    steps = len(data.train_images) // (data.batch_size * trainer.world_size)
    training = DetectionTraining(config, data, steps)
    start = time.monotonic()
    fit(trainer, training, data, resuming)
    if process_rank() == 0:
        save_weights(run.path / WEIGHTS, training.detector.state_dict())
        found = {key: value for key, value in last_evaluation(trainer).items() if key.startswith("val/")}
        record(run.path, "litv2", config.detector, found, seed, time.monotonic() - start)
        print(f"{run.path}: {WEIGHTS}, metrics.json")
    return training


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Average precision of a run's last weights, or of --ckpt FILE, on the validation images of the options."""
    if run is None and options.ckpt is None:
        raise UserError(f"no weights: name a run folder or its {WEIGHTS} with --ckpt")
    file = options.ckpt is not None and Path(options.ckpt).is_file()
    start, weights = time.monotonic(), Path(options.ckpt) if run is None or file else run.path / WEIGHTS
    state = read_weights(weights, options.trust_pickle, part=options.part, part_advice="--part")
    options.data.masks = options.detection.detector == "mask_rcnn"
    options.data.setup()
    training = DetectionTraining(replace(options.detection, weights=None), options.data, 1)
    load_strict(training.detector, state, str(weights))
    judge, on = training.judge, device(options.device)
    found = average_precisions(training.detector, options.data, on, judge.first_label, judge.masks)
    report(
        Path(options.output),
        options.detection.detector,
        str(weights),
        found,
        options.training_seed,
        time.monotonic() - start,
    )
