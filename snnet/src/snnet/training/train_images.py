"""Train a stitched network on real images.

Options stand in a YAML file or on the command line: --network.* which anchors and how they are stitched, --training.*
what a step does, --optim.* optimiser and schedule, --savings.* and --ema.* what saves time or memory, --teacher.* the
distillation teacher, --data.* the images, --trainer.* Lightning's Trainer (devices, num_nodes, strategy, precision,
max_epochs, ...).
"""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from paperkit.command.cli import make_parser
from paperkit.command.run_options import add_run_options, open_run, parse_run, write_settings
from paperkit.data.images import ImageData
from paperkit.training.optim import OptimConfig, check_clipping
from paperkit.training.savings import EMA, Savings
from snnet.training.images import TRAINER_OPTIONS, NetworkConfig, TeacherConfig, rehearse, strategy_for, train
from snnet.training.joint import TrainingConfig
from snnet.training.refusals import check_images


def main(argv: Sequence[str], prog: str) -> int:
    """Parse, open the run folder, train, evaluate."""
    parser = build_parser(prog)
    arguments, run = parse_run(parser, "snnet", argv)
    resuming = run is not None
    options = parser.instantiate_classes(arguments)
    # Before there is a run folder: neither switches that are refused nor missing data leave anything behind.
    strategy_for(vars(arguments.trainer))
    check_images(
        options.training,
        options.savings,
        options.ema,
        options.data.sizes,
        vars(arguments.trainer),
        options.network.split_bn,
    )
    check_clipping(options.optim, arguments.trainer.gradient_clip_val)
    rehearse(options.network, options.training, options.teacher, options.optim, options.savings, options.data)
    options.data.setup()
    run = run or open_run(arguments.root, "snnet", arguments.name, None)
    with run.lock():
        write_settings(run, parser, arguments)  # of a resumed run too: what is given beside --resume counts
        print(f"run folder {run.path}", flush=True)
        train(
            run,
            options.network,
            options.training,
            options.teacher,
            options.optim,
            options.savings,
            options.ema,
            options.data,
            vars(arguments.trainer),
            arguments.training_seed,
            arguments.save_every,
            resume=resuming,
        )
        run.mark_finished()
    print(
        f"{run.path}: network/ (last), best/ (highest mean validation accuracy); evaluate: snnet eval --ckpt {run.path}"
    )
    return 0


def build_parser(prog: str) -> Any:
    parser = make_parser(prog, __doc__)
    add_run_options(parser)
    parser.add_argument("--training_seed", type=int, default=0, help="rank r draws its ids from the stream of seed + r")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    parser.add_class_arguments(NetworkConfig, "network")
    parser.add_class_arguments(TrainingConfig, "training")
    parser.add_class_arguments(TeacherConfig, "teacher")
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(Savings, "savings")
    parser.add_class_arguments(EMA, "ema")
    parser.add_class_arguments(ImageData, "data")
    every = parser_names(pl.Trainer)
    parser.add_class_arguments(pl.Trainer, "trainer", skip=every - set(TRAINER_OPTIONS), instantiate=False)
    parser.set_defaults({"trainer.max_epochs": 50})
    return parser


def parser_names(function: Any) -> set[str]:
    """Parameter names of a class's constructor."""
    import inspect

    return set(inspect.signature(function).parameters)
