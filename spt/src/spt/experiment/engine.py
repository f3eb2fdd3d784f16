"""Pre-train a small ViT on handwritten digits and tune it on four tasks: sixteen ways to spend the same budget."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperkit.command import engines
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from spt.experiment.settings import ExperimentConfig, SeedResult


def add_arguments(parser: Any) -> None:
    """Options of the embedded experiment."""
    parser.add_class_arguments(ExperimentConfig)


def check(options: Any, run: RunFolder | None) -> None:
    """Refuses settings that cannot be, and other ones than those that the run's arms were tuned with."""
    engines.settings_of(options, ExperimentConfig)
    engines.refuse_changes(options, run, free=("processes",))


def train(run: RunFolder, options: Any, resuming: bool) -> None:
    """Pre-trains the backbone, then runs the seeds side by side."""
    from paperkit.command.seeds import run_seeds

    config, start = engines.settings_of(options, ExperimentConfig), time.monotonic()
    shared, again = {"run": str(run.path), "config": config}, f"spt train --resume {run.path}"
    print(f"{config.seeds} seeds, {len(config.tasks)} tasks, {len(config.arm_list)} arms", flush=True)
    print(f"pre-training the backbone, {config.pretrain_steps} steps", flush=True)
    backbone = run_seeds(
        "spt.experiment.run:pretrain", [config.backbone_seed], shared, config.pretrain_steps, resume_with=again
    )
    results = run_seeds(
        "spt.experiment.run:run_seed",
        config.seed_list,
        shared,
        config.steps_per_seed,
        processes=config.processes or None,
        resume_with=again,
    )
    report(run.path, list(results.values()), config, time.monotonic() - start, backbone[config.backbone_seed])


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Computes every number again from the saved weights: table, metrics.json, figures."""
    from paperkit.command.seeds import run_seeds

    config, start = engines.settings_of(options, ExperimentConfig), time.monotonic()
    if run is None:
        what = options.ckpt or "nothing"
        raise UserError(f"{what} lies in no run folder; name the run with --ckpt, or use `spt predict` for a delta")
    engines.refuse_changes(options, run, free=("processes",))
    if not (run.path / "backbone.safetensors").is_file():
        raise UserError(f"{run.path} has no backbone.safetensors; continue it with `spt train --resume {run.path}`")
    shared = {"run": str(run.path), "config": config}
    backbone = run_seeds("spt.experiment.run:pretrain", [config.backbone_seed], shared, config.pretrain_steps)
    results = run_seeds(
        "spt.experiment.run:evaluate_seed", config.seed_list, shared, 1, processes=config.processes or None
    )
    seconds = time.monotonic() - start
    report(Path(options.output), list(results.values()), config, seconds, backbone[config.backbone_seed])


def figures(run: RunFolder | None, options: Any) -> list[Path]:
    """Draws the figures from the run's metrics.json."""
    from paperkit.results.metrics import Metrics
    from spt.experiment.figures import draw

    if run is None:
        raise UserError(f"{options.run} lies in no run folder")
    return draw(Metrics.read(run.path / "metrics.json"), Path(options.output or run.path / "figures"))


def report(
    folder: Path, results: Sequence[SeedResult], config: ExperimentConfig, seconds: float, backbone: float
) -> None:
    """Table on the screen, metrics.json, figures.

    Args:
        backbone: accuracy (%) of the pre-trained backbone on the unseen half of the digits.
    """
    from paperkit.results.report import print_metrics
    from spt.experiment.figures import draw
    from spt.experiment.summary import summarise

    metrics = summarise(results, config, seconds, backbone)
    metrics.write(folder / "metrics.json")
    drawn = draw(metrics, folder / "figures")
    print_metrics(
        metrics, f"SPT on four tasks of handwritten digits, {len(results)} seeds, on {metrics.extra['evaluated_on']}"
    )
    print(f"note: {metrics.extra['counting']}")
    print(f"written: {folder / 'metrics.json'}, {len(drawn)} figures in {folder / 'figures'} ({seconds:.0f} s)")
