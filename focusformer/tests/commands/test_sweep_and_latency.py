"""The ablations' one table, and a measured latency table that training and search take."""

import json
from pathlib import Path

import pytest
import torch
from made import focusformer

from focusformer.experiment.ablations import ABLATIONS, strategy_of
from focusformer.experiment.choosing import reachable
from focusformer.method.architecture import SPACES
from focusformer.method.cost import LatencyTable
from focusformer.method.reinforce import Scores
from paperkit.results.metrics import Metrics

ARMS = ["FocusFormer, as in the experiment", "penalty absolute, no masks"]


def test_sweep_makes_one_table_and_goes_on(tmp_path: Path) -> None:
    words = ["sweep", "--arms", json.dumps(ARMS), "--seeds", 1, "--steps", 10, "--evaluations", 4]
    out = focusformer.here(*words, "--output", "sweep", cwd=tmp_path).out
    metrics = Metrics.read(tmp_path / "sweep" / "metrics.json")
    assert {row.arm for row in metrics.rows} == set(ARMS) and all(arm in out for arm in ARMS)
    assert metrics.row(ARMS[0], "fits").values == [1.0] and metrics.row(ARMS[0], "feasible").values == [1.0]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("[0-9]*.json")}
    assert len(kept) == len(ARMS)
    focusformer.here(*words, "--output", "sweep", cwd=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert Metrics.read(tmp_path / "sweep" / "metrics.json").rows == metrics.rows


@pytest.mark.parametrize("arm", ABLATIONS)
def test_every_arm_can_be_built(arm: str) -> None:
    """And plans a step; no two arms have one setting."""
    strategy = strategy_of(ABLATIONS[arm], 1, reachable(), 100)
    assert strategy.plan(0, lambda ones: Scores(torch.zeros(len(ones)), torch.zeros(len(ones))))
    assert list(ABLATIONS.values()).count(ABLATIONS[arm]) == 1


def test_sweep_names_its_arms(tmp_path: Path) -> None:
    assert focusformer.here("sweep", "--arms", "list", cwd=tmp_path).out.splitlines() == list(ABLATIONS)
    assert "no arm 'cosine'" in focusformer.refused("sweep", "--arms", "cosine", cwd=tmp_path)
    assert "a multiple of 4" in focusformer.refused("sweep", "--evaluations", "7", cwd=tmp_path)


def test_latency_table_of_a_space(tmp_path: Path) -> None:
    words = ["latency", "--space", "digits", "--seconds", 0.002, "--output", "table.json"]
    out = focusformer.here(*words, cwd=tmp_path).out
    table, space = LatencyTable.read(tmp_path / "table.json"), SPACES["digits"]
    table.check(space)
    assert table(space.largest()) > 0 < table(space.smallest())  # which is slower, a busy machine need not show
    assert "random 3" in out and "batch 1" in table.device
    assert "above 0" in focusformer.refused("latency", "--seconds", "0", cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--space", "nowhere.yaml"], "nowhere.yaml"),
        (["--space", "tiny"], "no space 'tiny'"),
        (["--device", "cuda:77"], "no device 'cuda:77'"),
    ],
)
def test_latency_refuses_in_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    assert line in focusformer.refused("latency", *words, cwd=tmp_path)
