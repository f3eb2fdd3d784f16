"""The embedded experiment: softmax rows in one bit (A), binary students on digits (B), more tokens (C)."""

import time
from pathlib import Path
from typing import Any

from bivit.experiment.settings import STUDENTS, TRAIN, ExperimentConfig
from paperkit.command.engines import refuse_below_one, refuse_changes, settings_of
from paperkit.errors import UserError


def add_arguments(parser: Any) -> None:
    """The settings."""
    parser.add_class_arguments(ExperimentConfig)


def check(options: Any, run: Any) -> None:
    """Refuse settings that cannot be run, and any that differ from those of a run that goes on.

    Raises:
        UserError: the first of them.
    """
    refuse_changes(options, run, free=("processes",))
    config = settings_of(options, ExperimentConfig)
    refuse_below_one(config, ("seeds", "teacher_epochs", "batch_size"))
    if not 0 <= config.long_seeds <= config.seeds:
        raise UserError(f"long_seeds {config.long_seeds} is not from 0 to the number of seeds, {config.seeds}")
    if config.student_epochs < 2:
        raise UserError(f"student_epochs {config.student_epochs} is below 2, one for each stage of a student")
    if config.batch_size > TRAIN:
        raise UserError(f"batch_size {config.batch_size} is above the {TRAIN} images of an epoch")
    for name in config.arms:
        if name not in STUDENTS:
            raise UserError(f"no student '{name}'; there are six, all, {', '.join(STUDENTS)}")
    if not config.arms:
        raise UserError("there is no student: name one at least")


def train(run: Any, options: Any, resuming: bool) -> None:
    """All parts seed by seed, side by side."""
    from paperkit.command.seeds import run_seeds

    config, start = settings_of(options, ExperimentConfig), time.monotonic()
    print(f"{config.seeds} seeds of up to {config.most_steps:,} steps", flush=True)
    results = run_seeds(
        "bivit.experiment.run:run_seed",
        config.seed_list,
        {"run": str(run.path), "config": config},
        config.most_steps,
        processes=config.processes or None,
        resume_with=f"bivit train --resume {run.path}",
    )
    finish(run, list(results.values()), config, time.monotonic() - start, run.path)


def evaluate(run: Any, options: Any) -> None:
    """Every number again, from the saved weights."""
    import torch

    from bivit.experiment.run import measure_seed

    if run is None:
        raise UserError(f"{options.ckpt} lies in no run folder; name the data that it is tested on: --config FILE.yaml")
    refuse_changes(options, run, free=("processes",))
    config, start = settings_of(options, ExperimentConfig), time.monotonic()
    torch.set_num_threads(1)
    results = [measure_seed(seed, run.path, config) for seed in config.seed_list]
    finish(run, results, config, time.monotonic() - start, Path(options.output))


def figures(run: Any, options: Any) -> list[Path]:
    """Every figure of a run again, from its metrics.json and weights."""
    from bivit.experiment.figures import draw
    from paperkit.results.metrics import Metrics

    if run is None:
        raise UserError(f"{options.run} is no run folder of the embedded experiment")
    metrics = Metrics.read(run.path / "metrics.json")
    return draw(metrics, run.path, Path(options.output or run.path / "figures"))


def finish(run: Any, results: Any, config: ExperimentConfig, seconds: float, output: Path) -> None:
    """Write metrics.json and the figures into `output`, and print the tables."""
    from bivit.experiment.digit_transformer import costs
    from bivit.experiment.figures import draw
    from bivit.experiment.summary import summarise
    from paperkit.results.report import print_metrics

    metrics = summarise(results, costs(config.arms), seconds)
    metrics.write(output / "metrics.json")
    drawn = draw(metrics, run.path, output / "figures")
    print_metrics(metrics, f"BiViT: rows (A), students (B), more tokens (C); {len(results)} seeds, a thread each")
    print(f"{output}: metrics.json, {', '.join(f'figures/{path.name}' for path in drawn)}")
