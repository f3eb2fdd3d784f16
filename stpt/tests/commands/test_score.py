"""`stpt score`: figures of a file of detections, printed and kept, and what they leave out."""

import json
from pathlib import Path
from typing import Any

import pytest
from made import stpt

from paperkit.results.metrics import Metrics


def found(label: str, start: float, end: float, score: float) -> dict[str, Any]:
    return {"label": label, "score": score, "segment": [start, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    actions = [{"label": "walk", "segment": ["2", "6"]}, {"label": "jump", "segment": ["10", "14"]}]
    database = {"a": {"subset": "test", "annotations": actions}, "b": {"subset": "train", "annotations": actions}}
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    named = [found("walk", 2, 6, 0.9), found("jump", 10, 12, 0.8), found("swim", 0, 1, 0.7)]
    one = [found("action", 2, 6, 0.9), found("action", 10, 12, 0.8)]
    for name, entries in (("named", {"a": named, "b": named, "z": named}), ("one", {"v_a": one})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"results": entries}))
    (tmp_path / "cuhk.json").write_text(json.dumps({"class": ["walk", "jump"], "results": {"a": [0.9, 0.1]}}))
    return tmp_path


TEST = ("truth.json", "--subset", "test", "--thresholds", "[0.5,0.7]", "--output", "out")


def test_figures_are_printed_kept_and_drawn(folder: Path) -> None:
    told = stpt.here("score", "named.json", *TEST, cwd=folder).out
    metrics = Metrics.read(folder / "out" / "metrics.json")
    values = {row.metric: row.mean for row in metrics.rows}
    assert values["mAP@0.5"] == 100 and values["mAP@0.7"] == 50 and values["mAP"] == 75
    assert metrics.extra["classes"] == {"jump": 50, "walk": 100} and metrics.extra["policy"] == "afsd"
    assert "2 detections of 1 unknown classes, such as 'swim' (2)" in told and "among the annotations: z" in told
    for name in ("ap_heat_map", "precision_recall", "error_breakdown"):
        assert (folder / "out" / "figures" / f"{name}.png").stat().st_size > 5_000


def test_one_class_is_told_apart_from_named_ones(folder: Path) -> None:
    """Both figures with a classifier; without it no figure of all classes."""
    alone = stpt.here("score", "one.json", *TEST, cwd=folder).out
    assert "needs names: --classifier FILE" in alone
    assert {row.arm for row in Metrics.read(folder / "out" / "metrics.json").rows} == {"one class, no classifier"}
    stpt.here("score", "one.json", *TEST, "--classifier", "cuhk.json", cwd=folder)
    rows = {(row.arm, row.metric): row.mean for row in Metrics.read(folder / "out" / "metrics.json").rows}
    assert rows["one class, no classifier", "mAP@0.5"] == 100
    assert rows["named by cuhk.json", "mAP@0.5"] == 50  # all are called walk, and jump is not found


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["lost.json", "truth.json"], "no file of detections at lost.json"),
        (["truth.json", "truth.json"], "no file of detections"),
        (["named.json", "truth.json", "--subset", "val"], "no video is of the subset 'val'"),
        (["named.json", "truth.json", "--policy", "mine"], "policy 'mine' is none of afsd, opentad"),
        (["named.json", "truth.json", "--thresholds", "[0.5,1.5]"], "a threshold of 1.5"),
        (["named.json", "truth.json", "--thresholds", "[]"], "no thresholds"),
        (["named.json", "truth.json", "--classifier", "cuhk.json"], "names the label 'action' only"),
        (["one.json", "truth.json", "--classifier", "truth.json"], "no file of a classifier's scores"),
        (["one.json", "truth.json", "--top", "0"], "top 0 is below 1"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str, folder: Path) -> None:
    assert line in stpt.refused("score", *words, cwd=folder)
    assert not (folder / "runs").exists()
