"""The embedded experiment: local and global attention on moving digits, seeds side by side. It needs no data."""

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from paperkit.command.embedded import FREE, drawn_run, evaluated_run, measure_seeds, train_seeds
from paperkit.command.engines import refuse_below_one, refuse_changes, settings_of
from paperkit.errors import UserError
from stpt.experiment.settings import ExperimentConfig


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
    refuse_below_one(config, ("seeds", "steps", "batch_size", "test_clips", "channels"))
    if config.split not in ("val", "test"):
        raise UserError(f"split '{config.split}' is neither test nor val")
    if config.channels % 2:
        raise UserError(f"channels {config.channels} cannot be halved into those for starts and for ends")
    for pattern in config.also:
        if len(pattern) != 4 or set(pattern) - set("LGC"):
            raise UserError(f"pattern '{pattern}' is not four letters of L (local), G (global), C (convolution)")


def train(run: Any, options: Any, resuming: bool) -> None:
    """All arms seed by seed, side by side."""
    config, start = settings_of(options, ExperimentConfig), time.monotonic()
    print(f"{config.seeds} seeds of {', '.join(config.arms)}; {config.steps} steps each", flush=True)
    results = train_seeds(run, config, "stpt.experiment.run:run_seed", len(config.arms) * config.steps)
    finish(run, results, config, time.monotonic() - start, run.path)


def evaluate(run: Any, options: Any) -> None:
    """Every number again, from the weights."""
    from stpt.experiment.run import measure_seed

    run, config = evaluated_run(run, options, ExperimentConfig)
    start = time.monotonic()
    results = measure_seeds(measure_seed, run, config)
    finish(run, results, config, time.monotonic() - start, Path(options.output))


def figures(run: Any, options: Any) -> list[Path]:
    """Every figure of a run again, from its metrics.json and weights."""
    from stpt.experiment.figures import draw

    run, metrics = drawn_run(run, options)
    saved, known = run.read_config(), {field.name for field in fields(ExperimentConfig)}
    config = ExperimentConfig(**{name: value for name, value in saved.items() if name in known})
    return draw(metrics, run.path, Path(options.output or run.path / "figures"), config)


def finish(run: Any, results: Any, config: ExperimentConfig, seconds: float, output: Path) -> None:
    """Write metrics.json and the figures into `output`, and print the table."""
    from paperkit.results.report import print_metrics
    from stpt.experiment.compute import count_small, count_whole
    from stpt.experiment.figures import draw
    from stpt.experiment.summary import summarise

    metrics = summarise(results, count_whole(), count_small(config), config, seconds)
    metrics.write(output / "metrics.json")
    drawn = draw(metrics, run.path, output / "figures", config)
    print_metrics(metrics, f"STPT: local and global attention on moving digits; {len(results)} seeds, a thread each")
    print(f"{output}: metrics.json, {', '.join(f'figures/{path.name}' for path in drawn)}")
