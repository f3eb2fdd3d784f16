"""The embedded experiment: softmax rows in one bit (A), binary students on digits (B), more tokens (C)."""

import time
from pathlib import Path
from typing import Any

from bivit.experiment.settings import STUDENTS, TRAIN, ExperimentConfig
from paperkit.command.embedded import FREE, drawn_run, evaluated_run, measure_seeds, train_seeds
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
    refuse_changes(options, run, free=FREE)
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
    config, start = settings_of(options, ExperimentConfig), time.monotonic()
    print(f"{config.seeds} seeds of up to {config.most_steps:,} steps", flush=True)
    results = train_seeds(run, config, "bivit.experiment.run:run_seed", config.most_steps)
    finish(run, results, config, time.monotonic() - start, run.path)


def evaluate(run: Any, options: Any) -> None:
    """Every number again, from the saved weights."""
    from bivit.experiment.run import measure_seed

    start = time.monotonic()
    run, config = evaluated_run(run, options, ExperimentConfig)
    results = measure_seeds(measure_seed, run, config)
    finish(run, results, config, time.monotonic() - start, Path(options.output))


def figures(run: Any, options: Any) -> list[Path]:
    """Every figure of a run again, from its metrics.json and weights."""
    from bivit.experiment.figures import draw

    run, metrics = drawn_run(run, options)
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
