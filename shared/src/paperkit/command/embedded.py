"""What the engines of embedded experiments share: seeds trained side by side, measured again, drawn again.

Such an experiment needs no data, and its run folder holds all that `eval` and `figures` read. A paper's `engine.py`
keeps what is its own: the checks, the words that are printed, the summary and the drawing.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from paperkit.command.engines import refuse_changes, settings_of
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.results.metrics import Metrics

FREE = ("processes",)
"""The settings that may change when a run goes on or is evaluated: they do not touch the results."""


class SeedConfig(Protocol):
    """What the settings of an experiment have: which seeds, and how many of them at once."""

    @property
    def processes(self) -> int:
        """Seeds side by side; 0 for one a core."""
        ...

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        ...


Config = TypeVar("Config", bound=SeedConfig)
Result = TypeVar("Result")


def train_seeds(run: RunFolder, config: SeedConfig, work: str, steps: int) -> list[Any]:
    """Run every seed, side by side; returns what each returned, in the order of the seeds.

    Args:
        run: the run folder.
        config: the settings.
        work: `paper.module:function`, called as `function(seed, advance, run, config)` with the folder as a string.
        steps: steps of one seed, for the estimate of the time left.

    Raises:
        UserError, Interrupted: as `paperkit.command.seeds.run_seeds`.
    """
    from paperkit.command.seeds import run_seeds  # rich and multiprocessing: `eval` and `--help` do without

    results = run_seeds(
        work,
        config.seed_list,
        {"run": str(run.path), "config": config},
        steps,
        processes=config.processes or None,
        resume_with=f"{work.partition('.')[0]} train --resume {run.path}",
    )
    return list(results.values())


def evaluated_run(run: RunFolder | None, options: Any, kind: type[Config]) -> tuple[RunFolder, Config]:
    """The run that `eval` was given, and its settings.

    Raises:
        UserError: if there is no run, or if a setting differs from the run's.
    """
    if run is None:
        raise UserError(f"{options.ckpt} lies in no run folder; name the data that it is tested on: --config FILE.yaml")
    refuse_changes(options, run, free=FREE)
    return run, settings_of(options, kind)


def measure_seeds(measure: Callable[..., Result], run: RunFolder, config: SeedConfig) -> list[Result]:
    """`measure(seed, run.path, config)` of every seed in this process, one thread as in training."""
    import torch

    torch.set_num_threads(1)
    return [measure(seed, run.path, config) for seed in config.seed_list]


def drawn_run(run: RunFolder | None, options: Any) -> tuple[RunFolder, Metrics]:
    """The run whose figures are drawn again, and its metrics.json.

    Raises:
        UserError: if there is no run, or if its metrics cannot be read.
    """
    if run is None:
        raise UserError(f"{options.run} is no run folder of the embedded experiment")
    return run, Metrics.read(run.path / "metrics.json")
