"""What engines of embedded experiments share: what reaches the seeds, what is refused."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from paperkit.command.embedded import drawn_run, evaluated_run, measure_seeds, train_seeds
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.results.metrics import Metrics, Row


@dataclass
class Settings:
    """Of a made experiment."""

    seeds: int = 2
    processes: int = 0

    @property
    def seed_list(self) -> list[int]:
        return list(range(5, 5 + self.seeds))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"seeds": 2, "processes": 0}))
    return RunFolder(tmp_path)


@pytest.mark.parametrize(("processes", "at_once"), [(0, None), (3, 3)])
def test_what_reaches_the_seeds(
    processes: int, at_once: int | None, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run_seeds(*arguments: Any, **named: Any) -> dict[int, str]:
        asked.extend((arguments, named))
        return {5: "five", 6: "six"}

    monkeypatch.setattr("paperkit.command.seeds.run_seeds", run_seeds)
    config = Settings(processes=processes)
    assert train_seeds(run, config, "gamma.experiment.run:run_seed", 40) == ["five", "six"]
    assert asked == [
        ("gamma.experiment.run:run_seed", [5, 6], {"run": str(run.path), "config": config}, 40),
        {"processes": at_once, "resume_with": f"gamma train --resume {run.path}"},
    ]


def test_every_seed_is_measured_on_one_thread(run: RunFolder) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = measure_seeds(lambda *given: (*given, torch.get_num_threads()), run, Settings())
    finally:
        torch.set_num_threads(threads)
    assert found == [(5, run.path, Settings(), 1), (6, run.path, Settings(), 1)]


def test_an_evaluation_keeps_the_settings_but_for_processes(run: RunFolder) -> None:
    assert evaluated_run(run, Namespace(seeds=2, processes=4), Settings) == (run, Settings(2, 4))
    with pytest.raises(UserError, match=r"^a run keeps its settings: seeds was 2, is 3$"):
        evaluated_run(run, Namespace(seeds=3, processes=0), Settings)
    with pytest.raises(UserError, match=r"^w\.ckpt lies in no run folder; name the data .*: --config FILE\.yaml$"):
        evaluated_run(None, Namespace(ckpt="w.ckpt"), Settings)


def test_figures_need_a_run_and_its_metrics(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"^here is no run folder of the embedded experiment$"):
        drawn_run(None, Namespace(run="here"))
    with pytest.raises(UserError, match=r"metrics\.json"):
        drawn_run(run, Namespace(run="here"))
    Metrics("gamma", [5, 6], 1.0, [Row("arm", "accuracy", [1.0, 2.0], "%")], []).write(run.path / "metrics.json")
    found, metrics = drawn_run(run, Namespace(run="here"))
    assert found is run
    assert metrics.rows[0].values == [1.0, 2.0]
