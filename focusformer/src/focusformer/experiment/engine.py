"""The embedded experiment: a uniform and a focused supernet on digits, and what each search finds in them."""

import time
from pathlib import Path
from typing import Any

from focusformer.experiment.settings import FOCUS, TRAIN, ExperimentConfig
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
    refuse_below_one(config, ("seeds", "batch_size", "alone_steps"))
    if config.steps < 10:
        raise UserError(f"steps {config.steps} is below 10, of which the sampler is left out of the first")
    if config.evaluations < 4 or config.evaluations % 4:
        raise UserError(f"evaluations {config.evaluations} is no multiple of 4, as evolution needs: such as 200")
    if config.alone < 0:
        raise UserError(f"alone {config.alone} is below 0")
    if config.batch_size > TRAIN:
        raise UserError(f"batch_size {config.batch_size} is above the {TRAIN} images of an epoch")


def train(run: Any, options: Any, resuming: bool) -> None:
    """Every seed, side by side; stages that are done are not done again."""
    config, start = settings_of(options, ExperimentConfig), time.monotonic()
    print(f"{config.seeds} seeds of up to {config.most_steps:,} steps", flush=True)
    results = train_seeds(run, config, "focusformer.experiment.run:run_seed", config.most_steps)
    finish(results, config, time.monotonic() - start, run.path)


def evaluate(run: Any, options: Any) -> None:
    """Every search again, from the saved supernets and sampler."""
    from focusformer.experiment.run import measure_seed

    start = time.monotonic()
    run, config = evaluated_run(run, options, ExperimentConfig)
    results = measure_seeds(measure_seed, run, config)
    finish(results, config, time.monotonic() - start, Path(options.output))


def figures(run: Any, options: Any) -> list[Path]:
    """Every figure of a run again, from its metrics.json."""
    from focusformer.experiment.figures import draw

    run, metrics = drawn_run(run, options)
    return draw(metrics, Path(options.output or run.path / "figures"))


def finish(results: Any, config: ExperimentConfig, seconds: float, output: Path) -> None:
    """Write metrics.json and the figures into `output`, and print the tables."""
    from focusformer.experiment.figures import draw
    from focusformer.experiment.summary import SECONDS, arm_table, summarise
    from paperkit.results.report import print_metrics, table

    metrics = summarise(results, config.evaluations, seconds)
    metrics.write(output / "metrics.json")
    drawn = draw(metrics, output / "figures")
    print_metrics(metrics, f"FocusFormer: supernets on digits; {len(results)} seeds, a thread each")
    table(*arm_table(metrics))
    spent, whole = (metrics.row(what, SECONDS).mean for what in ("sampler and rewards", f"training, {FOCUS}"))
    print(f"the sampler and its rewards took {100 * spent / whole:.0f} % of the focused supernet's training time")
    print(f"{output}: metrics.json, {', '.join(f'figures/{path.name}' for path in drawn)}")
