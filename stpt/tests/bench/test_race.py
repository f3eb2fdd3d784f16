"""The bench, shortened: what it races computes what it says, and what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made import stpt
from PIL import Image

from paperkit.errors import UserError
from stpt.bench import forms, networks, race
from stpt.bench.memory import training_peak

TINY = (1, 32, 32, 32)


@pytest.mark.parametrize("backward", [False, True])
def test_poolings_agree(backward: bool) -> None:
    ours, *rivals = (step() for step in forms.pooling_steps(2, 8, 20, 6, backward).values())
    assert len(rivals) == 2 and ours.abs().max() > 0  # type: ignore[attr-defined]
    for rival in rivals:
        torch.testing.assert_close(rival, ours)


def test_soft_nms_agrees() -> None:
    ours, *rivals = (step() for step in forms.nms_steps(3, 30, np.float64).values())
    assert len(rivals) == 2 and all(0 < len(rows) <= 30 for rows in ours)  # type: ignore[attr-defined]
    for rival in rivals:
        for found, expected in zip(rival, ours, strict=True):  # type: ignore[call-overload]
            np.testing.assert_allclose(found, expected)


def test_maps_agree() -> None:
    ours, *rivals = (step() for step in forms.map_steps(12, 60, 500).values())
    assert 0 < ours < 1 and rivals == [pytest.approx(ours, abs=1e-12)] * 2  # type: ignore[operator]


def test_networks_are_what_they_are_called() -> None:
    """A pattern's name is that of its stages; positional convolutions are no zeros; training's forms agree."""
    assert {name: networks.NAMES[name].removeprefix("stpt_").upper() for name in (networks.LLLL, networks.GGGG)} == {
        "LLLL": "LLLL", "GGGG": "GGGG"}  # fmt: skip
    kept, again = (step() for step in networks.training_steps(TINY).values())
    for found, expected in zip(again, kept, strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    maps = networks.infer(networks.network(networks.I3D), networks.clip_of(TINY))
    assert [tuple(found.shape[1:3]) for found in maps] == [(832, 8), (1024, 4)] * 2


def test_overlaps_are_shared_and_the_drift_is_told() -> None:
    steps, drifted = networks.overlap_steps(96, TINY)
    assert [step() for step in steps.values()] == [5, 5] and all(0 < value < 1 for value in drifted())


def test_memory_of_a_pass_is_measured() -> None:
    assert training_peak(networks.AGAIN, TINY) > 1


def test_aims_are_counted_and_the_missed_ones_named() -> None:
    rows = [{"race": "r", "rival": str(ratio), "ratio": ratio, **race._judged(ratio, 2.0)} for ratio in (1.0, 3.0)]
    rows.append({"race": "r", "rival": "x", "ratio": 1.0, **race._judged(1.0, None)})
    assert race.missed({"map": rows}) == (2, ["map: r, 1.0: 1, aim 2"])


def test_forms_that_differ_are_an_error() -> None:
    with pytest.raises(UserError, match="b and a differ"):
        race._check_agreement({"a": lambda: torch.zeros(2), "b": lambda: torch.ones(2)})


def test_a_slow_rival_runs_once_between_two_runs_of_ours() -> None:
    calls: list[str] = []
    (row,) = race._once("r", {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, {"b": 1e9})
    assert calls == ["a", "a", "b", "a"] and row["rival"] == "b" and row["met"] is False


def test_the_command_writes_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "POOLING", ((1, 8, 16, 4), (4, 8, 16, 4)))
    monkeypatch.setattr(race, "PARTS", {name: race.PARTS[name] for name in ("pooling", "nms", "map")})
    words = ["--quick", "--parts", '["pooling", "nms", "map"]', "--output", "out"]
    ended = stpt.here("bench", *words, cwd=tmp_path)
    content = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert all(row["ratio"] > 0 for part in ("pooling", "nms", "map") for row in content[part])
    assert Image.open(tmp_path / "out" / "bench.png").size[0] > 1000
    assert "0 of 0 aims met" in ended.out and "sparse table again" in ended.out
    assert "threads 0 is below 1" in stpt.refused("bench", "--threads", "0", cwd=tmp_path)
    assert "no parts" in stpt.refused("bench", "--parts", "[]", cwd=tmp_path)


def test_a_panel_for_each_part(tmp_path: Path) -> None:
    row = {"race": "clip", "rival": "GGGG", "of": race.TIME, "ratio": 3.0, "aim": 2.0}
    sizes = []
    for parts in (["pooling"], ["pooling", "nms", "map"]):
        race.draw({part: [row, {**row, "rival": "again again"}] for part in parts}, path := tmp_path / "bench.png")
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert sizes[1][0] > 1.5 * sizes[0][0] and sizes[1][1] > sizes[0][1]
