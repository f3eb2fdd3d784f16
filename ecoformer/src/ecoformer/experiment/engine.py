"""The embedded experiment: similarity of codes (A), digits (B), cluster majority (C). It needs no data."""

import time
from pathlib import Path
from typing import Any

from ecoformer.experiment.settings import DIGIT_TRAIN, ExperimentConfig
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
    from ecoformer.experiment.settings import DIGIT_ARMS, MAJORITY_ARMS

    refuse_changes(options, run, free=FREE)
    config = settings_of(options, ExperimentConfig)
    counted = ("seeds", "digit_epochs", "majority_steps", "majority_test", "batch_size", "fit_images", "fit_iterations")
    refuse_below_one(config, (*counted, "test_images"))
    if not 0 <= config.majority_seeds <= config.seeds:
        raise UserError(f"majority_seeds {config.majority_seeds} is not from 0 to the number of seeds, {config.seeds}")
    if config.batch_size > DIGIT_TRAIN:
        raise UserError(f"batch_size {config.batch_size} is above the {DIGIT_TRAIN} images of an epoch")
    if config.fit_images + config.test_images > 1797:
        raise UserError(f"{config.fit_images} and {config.test_images} images are more than the 1797 that there are")
    for part, every in (("digits", DIGIT_ARMS), ("majority", MAJORITY_ARMS)):
        for arm in config.arms(part):
            if arm not in every:
                raise UserError(f"no arm '{arm}' in part {part}; there are all, {', '.join(every)}")
    if not config.arms("digits") or (config.majority_seeds and not config.arms("majority")):
        raise UserError("a part has no arm: name one at least (part C is left out by majority_seeds 0)")


def train(run: Any, options: Any, resuming: bool) -> None:
    """All parts seed by seed, side by side."""
    config, start = settings_of(options, ExperimentConfig), time.monotonic()
    print(f"{config.seeds} seeds of up to {config.most_steps:,} steps", flush=True)
    results = train_seeds(run, config, "ecoformer.experiment.run:run_seed", config.most_steps)
    finish(run, results, config, time.monotonic() - start, run.path)


def evaluate(run: Any, options: Any) -> None:
    """Every number again, from the saved hashes and weights."""
    from ecoformer.experiment.run import measure_seed

    start = time.monotonic()
    run, config = evaluated_run(run, options, ExperimentConfig)
    results = measure_seeds(measure_seed, run, config)
    finish(run, results, config, time.monotonic() - start, Path(options.output))


def figures(run: Any, options: Any) -> list[Path]:
    """Every figure of a run again, from its metrics.json and hashes."""
    from ecoformer.experiment.figures import draw

    run, metrics = drawn_run(run, options)
    return draw(metrics, run.path, Path(options.output or run.path / "figures"), _config_of(run))


def finish(run: Any, results: Any, config: ExperimentConfig, seconds: float, output: Path) -> None:
    """Write metrics.json and the figures into `output`, and print the tables."""
    from ecoformer.experiment.energy_of_networks import energies
    from ecoformer.experiment.figures import draw
    from ecoformer.experiment.run import digit_hash
    from ecoformer.experiment.summary import summarise
    from paperkit.results.report import print_metrics

    metrics = summarise(results, energies(digit_hash(config)), config, seconds)
    metrics.write(output / "metrics.json")
    drawn = draw(metrics, run.path, output / "figures", config)
    print_metrics(
        metrics, f"EcoFormer: codes (A), digits (B), cluster majority (C); {len(results)} seeds, a thread each"
    )
    print(f"{output}: metrics.json, {', '.join(f'figures/{path.name}' for path in drawn)}")


def _config_of(run: Any) -> ExperimentConfig:
    import dataclasses

    saved = run.read_config()
    given = {f.name: saved[f.name] for f in dataclasses.fields(ExperimentConfig) if f.name in saved}
    return ExperimentConfig(**given)
