"""Train a classifier on real images by the paper's recipe.

Options stand in a YAML file or on the command line: --network.* the model, --recipe.* optimiser and schedule,
--mixing.* mixup and CutMix, --data.* the images, --trainer.* Lightning's Trainer (devices, num_nodes, strategy,
precision, ...).
"""

import inspect
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from litv2.training.images import MixingConfig, NetworkConfig, check_savings, train
from litv2.training.recipe import Recipe
from paperkit.command.cli import make_parser
from paperkit.command.run_options import add_run_options, run_in_folder
from paperkit.data.images import ImageData
from paperkit.training.savings import EMA, Savings

TRAINER_OPTIONS = (
    "accelerator", "strategy", "devices", "num_nodes", "precision", "accumulate_grad_batches", "gradient_clip_val",
    "limit_train_batches", "limit_val_batches", "log_every_n_steps", "check_val_every_n_epoch", "max_steps",
    "benchmark",
    "deterministic", "sync_batchnorm", "enable_progress_bar",
)  # fmt: skip


def main(argv: Sequence[str], prog: str) -> int:
    """Parse, open the run folder, train."""
    parser = build_parser(prog)

    def check(arguments: Any) -> None:
        made = parser.instantiate_classes(arguments)
        check_savings(
            made.network, made.savings, made.ema, made.recipe, made.mixing, made.data, vars(arguments.trainer)
        )

    with run_in_folder(parser, "litv2", argv, check) as (run, arguments, resuming):
        made = parser.instantiate_classes(arguments)
        train(
            run, made.network, made.recipe, made.mixing, made.data, vars(arguments.trainer), arguments.training_seed,
            arguments.save_every, resuming, made.savings, made.ema,
        )  # fmt: skip
    print(f"{run.path}: model/ (last), best/ (highest validation accuracy); evaluate: litv2 eval --ckpt {run.path}")
    return 0


def build_parser(prog: str) -> Any:
    """Every option of a run on real images."""
    parser = make_parser(prog, __doc__)
    add_run_options(parser)
    parser.add_argument("--training_seed", type=int, default=0, help="initial weights, drop path and mixing")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    parser.add_class_arguments(NetworkConfig, "network")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(MixingConfig, "mixing")
    parser.add_class_arguments(ImageData, "data")
    parser.add_class_arguments(Savings, "savings")
    parser.add_class_arguments(EMA, "ema")
    skip = set(inspect.signature(pl.Trainer).parameters) - set(TRAINER_OPTIONS)
    parser.add_class_arguments(pl.Trainer, "trainer", skip=skip, instantiate=False)
    return parser
