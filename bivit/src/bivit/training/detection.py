"""Train Mask R-CNN on COCO over a Swin whose attention is binary, by Swin's 1x recipe, on torchvision's detector.

Options: --binary.* what of the backbone's blocks is binary (the MLPs stay float, as in the paper), --detection.*
network and recipe, --data.* the COCO folder, --trainer.* Lightning's Trainer.

AdamW, linear warm-up over 500 iterations from a thousandth of the rate, a tenth of it from epochs 8 and 11 on, 12
epochs of batch 16. No teacher: the paper mentions none here. Cascade Mask R-CNN is left out: torchvision has no such
head.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bivit.models.binarize import BinaryConfig
from bivit.models.detector import build_detector, is_without_decay
from bivit.models.keys import read_start, weight_file
from paperkit.command.engines import device
from paperkit.data.coco import CocoData, Sample
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank
from paperkit.files.weights import load_strict, read_weights, save_weights
from paperkit.results.record import record, told
from paperkit.training.detection import Detections, average_precisions, log_average_precision, stepped_adamw
from paperkit.training.trainer import add_trainer_options, fit, last_evaluation, make_trainer, trainer_options

WEIGHTS = "detector.safetensors"
FIRST_LABEL = 1  # 0 is torchvision's background


@dataclass
class DetectionConfig:
    """Detector and recipe.

    Args:
        name: timm's name of the backbone, a Swin.
        weights: of its classifier: file, folder or run, or `timm` for its ImageNet weights.
        drop_path_rate: of the backbone.
        lr, weight_decay: of AdamW; positions, norms and scales have no decay.
        epochs: length. milestones: epochs after which the rate falls to a tenth.
        warmup_iters, warmup_factor: linear warm-up.
        min_sizes: of the shorter side in px; training draws one, evaluation takes the last. max_size: of the longer.
        options: further arguments of timm's constructor.
        trust_pickle: read weights whose file may run code.
    """

    name: str = "swin_tiny_patch4_window7_224"
    weights: str | None = None
    drop_path_rate: float = 0.2
    lr: float = 1e-4
    weight_decay: float = 0.05
    epochs: int = 12
    milestones: tuple[int, ...] = (8, 11)
    warmup_iters: int = 500
    warmup_factor: float = 1e-3
    min_sizes: tuple[int, ...] = tuple(range(480, 801, 32))
    max_size: int = 1333
    options: dict[str, Any] = field(default_factory=dict)
    trust_pickle: bool = False


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two groups: with decay, and without."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if not is_without_decay(name)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if is_without_decay(name)], "weight_decay": 0.0},
    ]


def detector_of(config: DetectionConfig, binary: BinaryConfig, num_classes: int) -> nn.Module:
    """The detector with its starting weights."""
    state = None if config.weights is None else read_start(config.name, config.weights, config.trust_pickle)
    options = {"drop_path_rate": config.drop_path_rate, **config.options}
    return build_detector(
        config.name, binary, num_classes, state, str(config.weights), config.min_sizes, config.max_size, options
    )


class DetectionTraining(pl.LightningModule):
    """One step: the detector's own losses, summed; validation: COCO's average precision."""

    def __init__(self, config: DetectionConfig, binary: BinaryConfig, data: CocoData, steps_per_epoch: int) -> None:
        super().__init__()
        self.config, self.data, self.steps_per_epoch = config, data, steps_per_epoch
        self.detector = detector_of(config, binary, data.num_classes)
        self.judge = Detections(FIRST_LABEL, masks=True)

    def training_step(self, batch: list[Sample], batch_index: int) -> Tensor:
        losses = self.detector([image for image, _ in batch], [target for _, target in batch])
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
        groups = parameter_groups(self.detector, c.weight_decay)
        return stepped_adamw(groups, c.lr, self.steps_per_epoch, c.milestones, c.warmup_iters, c.warmup_factor)


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--training_seed", type=int, default=0, help="initial weights and drop path")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    parser.add_class_arguments(BinaryConfig, "binary")
    parser.set_defaults({"binary.mlp": "float"})
    parser.add_class_arguments(DetectionConfig, "detection")
    parser.add_class_arguments(CocoData, "data")
    add_trainer_options(parser)


def check(options: Any, run: RunFolder | None) -> None:
    """Read the annotations, and build the detector without its numbers, before there is a run folder.

    Raises:
        UserError: the first thing that cannot be.
    """
    config = options.detection
    if not config.min_sizes or min(config.min_sizes) < 32:
        raise UserError(f"detection.min_sizes {list(config.min_sizes)}: one at least, of 32 px or more")
    if config.weights not in (None, "timm"):
        weight_file(config.weights)
    options.data.setup()
    with torch.device("meta"):
        DetectionTraining(replace(config, weights=None), options.binary, options.data, 1)


def train(run: RunFolder, options: Any, resuming: bool) -> DetectionTraining:
    """Train to the end, or from the last checkpoint; writes the weights and the average precision."""
    config, data, seed = options.detection, options.data, options.training_seed
    if resuming and (run.path / "checkpoints" / "last.ckpt").exists():  # which holds all weights
        config = replace(config, weights=None)
    pl.seed_everything(seed, workers=False, verbose=False)
    trainer = make_trainer(
        run.path,
        {**trainer_options(options.trainer), "max_epochs": config.epochs},
        seed,
        resume_with=f"bivit train --resume {run.path}",
        save_every=options.save_every,
        best="val/box_AP",
    )
    data.trainer = trainer
    data.setup()
    steps = len(data.train_images) // (data.batch_size * trainer.world_size)
    training = DetectionTraining(config, options.binary, data, steps)
    start = time.monotonic()
    fit(trainer, training, data, resuming)
    if process_rank() == 0:
        save_weights(run.path / WEIGHTS, training.detector.state_dict())
        found = {key: value for key, value in last_evaluation(trainer).items() if key.startswith("val/")}
        extra = {"binary": asdict(options.binary), "detection": asdict(options.detection)}
        record(run.path, "bivit", "mask_rcnn", found, seed, time.monotonic() - start, extra=extra)
        print(f"{run.path}: {WEIGHTS}, metrics.json")
    return training


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Average precision of a run's last weights, or of --ckpt FILE, on the validation images of the options."""
    if run is None and options.ckpt is None:
        raise UserError(f"no weights: name a run folder or its {WEIGHTS} with --ckpt")
    file = options.ckpt is not None and Path(options.ckpt).is_file()
    start, weights = time.monotonic(), Path(options.ckpt) if run is None or file else run.path / WEIGHTS
    state = read_weights(weights, options.trust_pickle)
    options.data.setup()
    training = DetectionTraining(replace(options.detection, weights=None), options.binary, options.data, 1)
    load_strict(training.detector, state, str(weights))
    found = average_precisions(training.detector, options.data, device(options.device), FIRST_LABEL, masks=True)
    told(str(weights), found)
    seconds = time.monotonic() - start
    record(Path(options.output), "bivit", "mask_rcnn", found, options.training_seed, seconds)
