"""What train and eval share: opening a run folder, its settings, and the closing of an embedded run."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from litv2.experiment.settings import ExperimentConfig, SeedResult
from paperkit.command import run_options
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder


def open_run(root: str, name: str | None, resume: str | None) -> RunFolder:
    """A new run folder, or the one to continue: "newest" or a folder or name.

    Raises:
        UserError: nothing to continue, or a finished run.
    """
    folder = run_options.open_run(root, "litv2", name, resume)
    if resume is not None and folder.finished:
        raise UserError(f"{folder.path} is finished; litv2 eval --ckpt {folder.path} shows it")
    return folder


def read_experiment(folder: RunFolder) -> ExperimentConfig:
    """The settings of an embedded run.

    Raises:
        UserError: another kind of run.
    """
    content = folder.read_config()
    known = {field.name for field in fields(ExperimentConfig)}
    if strange := sorted(set(content) - known):
        raise UserError(f"{folder.path} is no run of the embedded experiment: option {strange[0]!r}")
    settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    return ExperimentConfig(**settings)


def finish(
    folder: RunFolder,
    results: Sequence[SeedResult],
    costs: Sequence[dict[str, Any]],
    config: ExperimentConfig,
    command: str,
    seconds: float,
) -> None:
    """Write metrics.json and the figures, and print the tables."""
    from litv2.commands.figures import draw_embedded
    from litv2.experiment.summary import summarise
    from paperkit.results.report import print_metrics

    metrics = summarise(results, costs, config, command, seconds)
    metrics.write(folder.path / "metrics.json")
    figures = draw_embedded(metrics, folder.path)
    print_metrics(
        metrics, f"LITv2: cost (A), two markers (B), frequency split (C); {len(results)} seeds, one thread each"
    )
    print(f"{folder.path}: metrics.json, {', '.join(f'figures/{path.name}' for path in figures)}")
