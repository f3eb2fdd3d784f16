"""The embedded experiment: cost of attention layers (A), two distant markers (B), frequency split on digits (C).

It needs no data. Parts B and C train one network for each share of Lo-Fi heads, seeds side by side.
"""

import json
import time
from pathlib import Path
from typing import Any

from litv2.experiment.settings import ExperimentConfig
from paperkit.command.embedded import FREE, evaluated_run, measure_seeds, train_seeds
from paperkit.command.engines import refuse_below_one, refuse_changes, settings_of
from paperkit.errors import UserError

COSTS = "costs.json"


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
    refuse_below_one(config, ("seeds", "marker_steps", "digit_steps", "batch_size", "marker_test"))
    for alpha in config.alphas:
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha {alpha} is outside [0, 1]; it is the share of heads in the Lo-Fi group")
    if not {0.0, 0.5} <= set(config.alphas):
        raise UserError(f"alphas {list(config.alphas)} must hold 0 and 0.5, which the claims compare")


def train(run: Any, options: Any, resuming: bool) -> None:
    """Parts B and C seed by seed, side by side; then part A on a quiet machine."""
    from litv2.experiment.single_layer import part_a
    from paperkit.files.atomic import write_atomic

    config, start = settings_of(options, ExperimentConfig), time.monotonic()
    print(f"{config.seeds} seeds of {config.total_steps:,} steps", flush=True)
    results = train_seeds(run, config, "litv2.experiment.run:run_seed", config.total_steps)
    print("part A: attention layers on the clock", flush=True)
    costs = part_a(config.timing_pairs)
    write_atomic(run.path / COSTS, json.dumps(costs, indent=1) + "\n")
    finish(run, results, costs, config, time.monotonic() - start, run.path)


def evaluate(run: Any, options: Any) -> None:
    """Parts B and C measured again from the saved weights; part A keeps the times that training took."""
    from litv2.experiment.run import measure_seed

    start = time.monotonic()
    run, config = evaluated_run(run, options, ExperimentConfig)
    results = measure_seeds(measure_seed, run, config)
    try:
        costs = json.loads((run.path / COSTS).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{run.path / COSTS} cannot be read ({error}); the run is not finished") from error
    finish(run, results, costs, config, time.monotonic() - start, Path(options.output))


def figures(run: Any, options: Any) -> list[Path]:
    """Every figure of a run again, from its metrics.json and networks."""
    from litv2.experiment.figures import draw
    from paperkit.results.metrics import Metrics

    if run is None:
        raise UserError(f"{options.run} is no run folder; the figures of a classifier: --engine images --image FILE")
    metrics = Metrics.read(run.path / "metrics.json")
    return draw(metrics, run.path, Path(options.output or run.path / "figures"))


def finish(run: Any, results: Any, costs: Any, config: ExperimentConfig, seconds: float, output: Path) -> None:
    """Write metrics.json and the figures into `output`, and print the tables."""
    from litv2.experiment.figures import draw
    from litv2.experiment.summary import summarise
    from paperkit.results.report import print_metrics

    metrics = summarise(results, costs, config, seconds)
    metrics.write(output / "metrics.json")
    drawn = draw(metrics, run.path, output / "figures")
    title = f"LITv2: cost (A), two markers (B), frequency split (C); {len(results)} seeds, one thread each"
    print_metrics(metrics, title)
    print(f"{output}: metrics.json, {', '.join(f'figures/{path.name}' for path in drawn)}")
