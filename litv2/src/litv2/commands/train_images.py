"""Train a classifier on real images by the paper's recipe.

Options stand in a YAML file or on the command line: --network.* the model, --recipe.* optimiser and schedule,
--mixing.* mixup and CutMix, --data.* the images, --trainer.* Lightning's Trainer (devices, num_nodes, strategy,
precision, ...).
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from litv2.image_training import MixingConfig, NetworkConfig, train
from litv2.optim_groups import Recipe
from paperkit.cli import make_parser
from paperkit.image_data import ImageData
from paperkit.runs import RunFolder, plain

TRAINER_OPTIONS = (
    "accelerator", "strategy", "devices", "num_nodes", "precision", "accumulate_grad_batches", "gradient_clip_val",
    "limit_train_batches", "limit_val_batches", "log_every_n_steps", "check_val_every_n_epoch", "max_steps",
    "benchmark",
    "deterministic", "sync_batchnorm", "enable_progress_bar",
)  # fmt: skip
OF_THE_RUN = ("config", "name", "root", "resume")


def main(argv: Sequence[str], prog: str) -> int:
    """Parse, open the run folder, train."""
    from litv2.commands.run_folders import open_run

    parser = build_parser(prog)
    arguments = parser.parse_args(list(argv))
    run = open_run(arguments.root, arguments.name, arguments.resume)
    with run.lock():
        if arguments.resume:
            arguments = resumed(parser, run, argv)
        else:
            content = json.loads(parser.dump(arguments, skip_none=False, format="json"))
            run.write_config(plain({key: value for key, value in content.items() if key not in OF_THE_RUN}))
            run.write_environment()
        print(f"run folder {run.path}", flush=True)
        made = parser.instantiate_classes(arguments)
        train(
            run, made.network, made.recipe, made.mixing, made.data, vars(arguments.trainer), arguments.training_seed,
            arguments.save_every, resume=arguments.resume is not None,
        )  # fmt: skip
        run.mark_finished()
    print(f"{run.path}: model/ (last), best/ (highest validation accuracy); evaluate: litv2 eval --ckpt {run.path}")
    return 0


def build_parser(prog: str) -> Any:
    """Every option of a run on real images."""
    parser = make_parser(prog, __doc__)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument("--name", type=str | None, default=None, help="name of the run folder (default: the time)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--resume", nargs="?", const="newest", default=None, help="continue a run; alone: the newest")
    parser.add_argument("--training_seed", type=int, default=0, help="initial weights, drop path and mixing")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    parser.add_class_arguments(NetworkConfig, "network")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(MixingConfig, "mixing")
    parser.add_class_arguments(ImageData, "data")
    skip = set(inspect.signature(pl.Trainer).parameters) - set(TRAINER_OPTIONS)
    parser.add_class_arguments(pl.Trainer, "trainer", skip=skip, instantiate=False)
    return parser


def resumed(parser: Any, run: RunFolder, argv: Sequence[str]) -> Any:
    """The options of a run folder; those on the command line come after them."""
    own = (run.path, Path(run.path.name))
    later = [word for word in argv if word != "--resume" and Path(word) not in own]
    return parser.parse_args(["--config", str(run.path / "config.yaml"), *later, "--resume", str(run.path)])
