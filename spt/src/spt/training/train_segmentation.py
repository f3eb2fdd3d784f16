"""Tune SETR on ADE20K. The configs under spt/configs/segmentation hold the rows of the paper's table.

`--trainer.KEY VALUE` goes to Lightning's Trainer: devices, num_nodes, strategy, precision, sync_batchnorm, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from paperkit.command.cli import make_parser
from paperkit.command.run_options import find_run


def main(argv: Sequence[str], prog: str) -> None:
    """Parses and runs."""
    parser = make_parser(prog, __doc__)
    add_arguments(parser)
    run(parser.parse_args(list(argv)))


def add_arguments(parser: Any) -> None:
    """Options by group; a config file holds the same groups."""
    from spt.training.segmentation_recipe import SceneOptions, SegmentationRecipe
    from spt.training.train_real import add_groups

    add_groups(parser, SceneOptions, SegmentationRecipe)


def to_options(content: Any) -> Any:
    """Options from a parsed namespace or a run's config."""
    from spt.training.segmentation_recipe import SceneOptions, SegmentationOptions, SegmentationRecipe
    from spt.training.train_real import read_groups

    parts, trainer = read_groups(content, SceneOptions, SegmentationRecipe)
    return SegmentationOptions(**parts, trainer=trainer)


def run(arguments: Any) -> None:
    """One run, new or continued."""
    from spt.training.segmentation import train_run

    folder = find_run(arguments.root, "spt", arguments.name, arguments.resume)
    with folder.lock():
        options = to_options(folder.read_config() if arguments.resume else vars(arguments))
        if not arguments.resume:
            folder.write_config(asdict(options))
            folder.write_environment()
        train_run(options, folder, bool(arguments.resume))
