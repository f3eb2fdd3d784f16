"""The embedded experiment: four decoders on scenes of digits, seeds side by side. It needs no data."""

import time
from pathlib import Path
from typing import Any

from faseg.experiment.settings import ARMS, ExperimentConfig
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
    counted = ("seeds", "steps", "batch_size", "train_scenes", "test_scenes", "queries", "width", "omega")
    refuse_below_one(config, counted)
    if config.split not in ("val", "test"):
        raise UserError(f"split '{config.split}' is neither test nor val")
    if not 8 <= config.smallest <= config.largest <= 32:
        raise UserError(f"digits of {config.smallest} to {config.largest} pixels: give sides from 8 to 32, in order")
    if config.width % 8:
        raise UserError(f"width {config.width} is no multiple of 8, the groups of its norms")
    if config.layers < 5:
        raise UserError(f"layers {config.layers} is below 5, the first layer that comes after a high-resolution one")
    if config.omega > 16:
        raise UserError(f"omega {config.omega} keeps none of the 16 windows")


def train(run: Any, options: Any, resuming: bool) -> None:
    """All arms seed by seed, side by side."""
    config, start = settings_of(options, ExperimentConfig), time.monotonic()
    steps = len(ARMS) * config.steps
    print(f"{config.seeds} seeds of {len(ARMS)} decoders, {config.steps} steps each", flush=True)
    results = train_seeds(run, config, "faseg.experiment.run:run_seed", steps)
    finish(run, results, config, time.monotonic() - start, run.path)


def evaluate(run: Any, options: Any) -> None:
    """Every number again, from the weights."""
    from faseg.experiment.run import measure_seed

    start = time.monotonic()
    run, config = evaluated_run(run, options, ExperimentConfig)
    results = measure_seeds(measure_seed, run, config)
    finish(run, results, config, time.monotonic() - start, Path(options.output))


def figures(run: Any, options: Any) -> list[Path]:
    """Every figure of a run again, from its metrics.json and weights."""
    from faseg.experiment.figures import draw

    run, metrics = drawn_run(run, options)
    return draw(metrics, run.path, Path(options.output or run.path / "figures"), run_config(run))


def finish(run: Any, results: Any, config: ExperimentConfig, seconds: float, output: Path) -> None:
    """Write metrics.json and the figures into `output`, and print the table."""
    from faseg.experiment.costs import costs_of_arms, keys_of_arms, macs_of_omegas
    from faseg.experiment.exactness import measure_exactness
    from faseg.experiment.figures import draw
    from faseg.experiment.summary import summarise
    from paperkit.results.report import print_metrics

    exact = measure_exactness(config.omega)
    metrics = summarise(
        results, costs_of_arms(config), keys_of_arms(config), macs_of_omegas(config), exact, config, seconds
    )
    metrics.write(output / "metrics.json")
    drawn = draw(metrics, run.path, output / "figures", config)
    print_metrics(metrics, f"FASeg: four decoders on scenes of digits; {len(results)} seeds, a thread each")
    print(f"{output}: metrics.json, {', '.join(f'figures/{path.name}' for path in drawn)}")


def run_config(run: Any) -> ExperimentConfig:
    """The settings that a run was trained with."""
    import dataclasses

    saved = run.read_config()
    given = {f.name: saved[f.name] for f in dataclasses.fields(ExperimentConfig) if f.name in saved}
    return ExperimentConfig(**given)
