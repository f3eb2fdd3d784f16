"""The embedded experiment: the calibrated variance in closed form (A), a quantised U-Net on digits, corrected (B)."""

import time
from pathlib import Path
from typing import Any

from paperkit.command.embedded import FREE, drawn_run, evaluated_run, train_seeds
from paperkit.command.engines import refuse_below_one, refuse_changes, settings_of
from paperkit.command.seeds import run_seeds
from paperkit.errors import UserError
from ptq4dm.experiment.settings import TRAIN, ExperimentConfig


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
    refuse_below_one(config, ("seeds", "draws", "steps", "batch_size", "records"))
    for name in ("images", "pairs"):
        if getattr(config, name) < 2:
            raise UserError(f"{name} {getattr(config, name)} is below 2, the fewest that have a spread")
    if config.batch_size > TRAIN:
        raise UserError(f"batch_size {config.batch_size} is above the {TRAIN} images there are")


def train(run: Any, options: Any, resuming: bool) -> None:
    """All networks, side by side: trained, calibrated, measured."""
    config, start = settings_of(options, ExperimentConfig), time.monotonic()
    print(f"{config.seeds} networks of {config.steps:,} steps, {config.draws} paired draws of each", flush=True)
    results = train_seeds(run, config, "ptq4dm.experiment.run:run_seed", config.all_steps)
    finish(run, results, config, time.monotonic() - start, run.path)


def evaluate(run: Any, options: Any) -> None:
    """Every sample again, from the saved weights, ranges and statistics, all networks side by side."""
    start = time.monotonic()
    run, config = evaluated_run(run, options, ExperimentConfig)
    results = run_seeds(
        "ptq4dm.experiment.run:measure_seed",
        config.seed_list,
        {"run": str(run.path), "config": config},
        config.sampler_steps,
        processes=config.processes or None,
        resume_with="the same command",
    )
    finish(run, list(results.values()), config, time.monotonic() - start, Path(options.output))


def figures(run: Any, options: Any) -> list[Path]:
    """Every figure of a run again, from its metrics.json and files."""
    from ptq4dm.experiment.figures import draw

    run, metrics = drawn_run(run, options)
    return draw(metrics, run.path, Path(options.output or run.path / "figures"))


def finish(run: Any, results: Any, config: ExperimentConfig, seconds: float, output: Path) -> None:
    """Write metrics.json and the figures into `output`, and print the tables."""
    import torch

    from paperkit.results.report import print_metrics
    from ptq4dm.experiment.figures import draw
    from ptq4dm.experiment.gaussian import measure_gaussian
    from ptq4dm.experiment.summary import summarise

    torch.set_num_threads(1)
    metrics = summarise(results, measure_gaussian(), config, seconds)
    metrics.write(output / "metrics.json")
    drawn = draw(metrics, run.path, output / "figures")
    draws = len(metrics.seeds)
    print_metrics(metrics, f"PTQD: Gaussian data (A), digits (B); {config.seeds} networks, {draws} paired draws in all")
    print(f"{output}: metrics.json, {', '.join(f'figures/{path.name}' for path in drawn)}")
