"""The embedded experiment: anchors, stitched network and baselines on handwritten digits, seeds side by side."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperkit.command.engines import refuse_changes, settings_of
from paperkit.command.seeds import run_seeds
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from snnet.experiment.settings import ExperimentConfig, SeedResult, check_experiment


def add_arguments(parser: Any) -> None:
    """The settings of the experiment."""
    parser.add_class_arguments(ExperimentConfig)


def add_figure_arguments(parser: Any) -> None:
    """Other models beside the stitches."""
    parser.add_argument("--zoo", type=str | None, default=None, help="CSV of other models: name,flops,top1")


def check(options: Any, run: RunFolder | None) -> None:
    """Refuse savings that do not work here, and settings that are not those of the run."""
    check_experiment(settings_of(options, ExperimentConfig))
    refuse_changes(options, run, free=("processes",))


def train(run: RunFolder, options: Any, resuming: bool) -> None:
    """Train every seed, side by side, and write the result; stages that are done are not done again."""
    start, config = time.monotonic(), settings_of(options, ExperimentConfig)
    print(f"{config.seeds} seeds of {config.total_steps:,} steps", flush=True)
    results = run_seeds(
        "snnet.experiment.run:run_seed",
        config.seed_list,
        {"run": str(run.path), "config": config},
        config.total_steps,
        processes=config.processes or None,
        resume_with=f"snnet train --resume {run.path}",
    )
    write_results(list(results.values()), config, run.path, time.monotonic() - start)


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Every arm of a run again, from its weights."""
    if run is None:
        raise UserError("this evaluates a run of the embedded experiment; for other weights: --engine images")
    refuse_changes(options, run, free=("processes",))
    from snnet.experiment.run import measure_seed

    start, config = time.monotonic(), settings_of(options, ExperimentConfig)
    results = [measure_seed(seed, run.path, config) for seed in config.seed_list]
    write_results(results, config, Path(options.output), time.monotonic() - start)


def figures(run: RunFolder | None, options: Any) -> list[Path]:
    """The figures of a run again, with its latencies where they were measured."""
    from paperkit.results.metrics import Metrics
    from snnet.experiment.figures import draw, points_of
    from snnet.figures.stitches import draw_more

    if run is None:
        raise UserError(f"{options.run} is not a run folder")
    metrics, folder = Metrics.read(run.path / "metrics.json"), Path(options.output or run.path / "figures")
    return draw(metrics, folder) + draw_more(points_of(metrics), run.path, options.zoo, folder)


def write_results(results: Sequence[SeedResult], config: ExperimentConfig, folder: Path, seconds: float) -> None:
    """Write metrics.json and the figures into `folder`, and print the table."""
    from paperkit.results.report import print_metrics
    from snnet.experiment.figures import draw
    from snnet.experiment.summary import summarise

    metrics = summarise(results, config, seconds)
    metrics.write(folder / "metrics.json")
    drawn = draw(metrics, folder / "figures")
    print_metrics(metrics, f"SN-Net on handwritten digits, {len(results)} seeds ({metrics.extra['split']} images)")
    print(f"{folder}: metrics.json, {', '.join(f'figures/{path.name}' for path in drawn)}")
