"""Train RetinaNet or Mask R-CNN on COCO by the paper's 1x schedule, on torchvision's detectors.

Options: --detection.* detector and recipe, --data.* the COCO folder, --trainer.* Lightning's Trainer.
"""

import inspect
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from litv2.training.coco import CocoData
from litv2.training.detection import DetectionConfig, DetectionTraining
from litv2.training.images import build_trainer
from litv2.training.train_images import TRAINER_OPTIONS
from paperkit.command.cli import make_parser
from paperkit.command.run_options import add_run_options, run_in_folder
from paperkit.files.runs import RunFolder, process_rank
from paperkit.files.weights import save_weights
from paperkit.results.metrics import Metrics, Row


def build_parser(prog: str) -> Any:
    """Every option of a detection run."""
    parser = make_parser(prog, __doc__)
    add_run_options(parser)
    parser.add_argument("--training_seed", type=int, default=0, help="initial weights and drop path")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    parser.add_class_arguments(DetectionConfig, "detection")
    parser.add_class_arguments(CocoData, "data")
    skip = set(inspect.signature(pl.Trainer).parameters) - set(TRAINER_OPTIONS)
    parser.add_class_arguments(pl.Trainer, "trainer", skip=skip, instantiate=False)
    return parser


def main(argv: Sequence[str], prog: str) -> int:
    """Parse, open the run folder, train, write the weights and the average precision."""
    parser = build_parser(prog)
    with run_in_folder(parser, "litv2", argv) as (run, arguments, resuming):
        made = parser.instantiate_classes(arguments)
        train(run, made.detection, made.data, vars(arguments.trainer), arguments.training_seed, arguments.save_every,
              resume=resuming)  # fmt: skip
    print(f"{run.path}: detector.safetensors, metrics.json")
    return 0


def train(
    run: RunFolder,
    config: DetectionConfig,
    data: CocoData,
    options: dict[str, Any],
    seed: int,
    save_every: int,
    resume: bool,
) -> DetectionTraining:
    """Train to the end, or from the last checkpoint."""
    last = run.path / "checkpoints" / "last.ckpt"
    pl.seed_everything(seed, workers=False, verbose=False)
    trainer = build_trainer(run, {**options, "max_epochs": config.epochs}, seed, save_every, best="val/box_AP")
    data.trainer = trainer
    data.setup()
    steps = len(data.train_images) // (data.batch_size * trainer.world_size)
    training = DetectionTraining(config, data, steps)
    start = time.monotonic()
    trainer.fit(training, datamodule=data, ckpt_path=last if resume and last.exists() else None)
    if process_rank() == 0:
        save_weights(run.path / "detector.safetensors", training.detector.state_dict())
        found = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        rows = [Row(config.detector, key, [value], "%") for key, value in found.items()]
        if rows:
            Metrics("litv2", "litv2 train", [seed], time.monotonic() - start, rows).write(run.path / "metrics.json")
    return training
