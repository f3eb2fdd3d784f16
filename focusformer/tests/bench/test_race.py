"""The bench, shortened: what it races computes what it says, and what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from focusformer.bench import forms, race
from focusformer.bench.memory import training_peak
from focusformer.commands import bench
from focusformer.method.architecture import SPACES
from paperkit.command.cli import make_parser
from paperkit.errors import UserError
from paperkit.results.metrics import Metrics, Row

TIMES = {"ratio": 2.0, "q25": 1.9, "q75": 2.1, "ms": 1.0}
TRACES = {"F1": [[0.5], [0.4]], "random": [[0.9, 0.6], [0.9, 0.4]], "E": [[0.5, 0.5], [0.8, *[0.5] * 18, 0.39]]}


def test_the_forms_compute_the_same() -> None:
    sizes = SPACES["digits"].sizes
    images, architecture = forms.images_of(sizes, 3), SPACES["digits"].largest()
    nets = {form: forms.supernet_of(form, sizes) for form in forms.FORMS}
    ours, official, none = (forms.training_step(net, architecture, images)() for net in nets.values())
    torch.testing.assert_close(ours, official, rtol=1e-5, atol=1e-6)
    assert none != ours
    theirs = dict(nets[forms.OFFICIAL].named_parameters())
    for name, parameter in nets[forms.OURS].named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("backward", [False, True])
def test_attentions_alone_compute_the_same(backward: bool) -> None:
    steps = forms.attention_steps(50, 2, 1, backward)
    torch.testing.assert_close(steps[forms.OURS](), steps[forms.OFFICIAL](), rtol=1e-4, atol=1e-5)


def test_memory_of_a_step_is_measured() -> None:
    assert 30 < training_peak(forms.OURS, "ti", 1) < 400  # gradients of the layers in use, and activations


def write_run(folder: Path, traces: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "started").write_text("2026\n")
    (folder / "finished").write_text("2026\n")
    Metrics("focusformer", [1], 1.0, [Row("F1", "x", [1.0])], [], extra={"traces": traces}).write(
        folder / "metrics.json"
    )
    return folder


def test_searches_are_told_from_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = race.search(str(write_run(tmp_path / "run", TRACES)))
    reached = {(r["search"], r["budget"]): r["reached after"] for r in rows}
    assert reached == {
        ("random search", 1): None,
        ("random search", 2): 2,
        ("evolution", 1): 1,
        ("evolution", 2): 20,
    }
    told = capsys.readouterr().out
    assert "not reached in 2" in told and "20 (above 10: not claimed)" in told
    with pytest.raises(UserError, match="tells of no searches"):
        race.search(str(write_run(tmp_path / "other", {})))


def test_aims_are_counted_and_the_missed_ones_named() -> None:
    rows = [
        {"network": "T", "threads": 1, "form": "a", "ratio": r, "aim": a, "met": r >= 2} for r, a in ((3, 2), (1, 2))
    ]
    assert race.missed({"training": rows}) == (2, ["training: T, a, threads 1: 1, aim 2"])


def test_a_panel_for_each_part(tmp_path: Path) -> None:
    found: dict[str, race.Rows] = {
        "training": [
            {"network": "T", "threads": 1, "form": form, **TIMES, "aim": 1.5, "peak MiB": 9.0} for form in forms.FORMS
        ],
        "attention": [{"tokens": 197, "pass": "forward", "form": forms.OFFICIAL, **TIMES}],
        "overhead": [{"part": race.TOTAL, **TIMES}],
        "extracted": [{"batch": 1, "form": "elastic", **TIMES}],
        "search": race.search(str(write_run(tmp_path / "run", TRACES))),
    }
    sizes = []
    for some in (found, {"overhead": found["overhead"]}):
        race.draw(some, path := tmp_path / "bench.png")
        sizes.append(Image.open(path).size)
    assert sizes[0][0] > 3 * sizes[1][0] and sizes[0][1] > 1.5 * sizes[1][1]


def test_the_command_writes_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = make_parser("focusformer bench")
    bench.add_arguments(parser)
    words = ["--quick", "--parts", '["attention", "overhead", "search"]', "--output", str(tmp_path)]
    assert bench.run(parser.parse_args(words)) == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    assert all(row["ratio"] > 0 for part in ("attention", "overhead") for row in content[part])
    assert (tmp_path / "bench.png").stat().st_size > 1000
    told = capsys.readouterr().out
    assert "search left out: no finished embedded run" in told and "aims met" in told
    with pytest.raises(UserError, match="threads 0 is below 1"):
        bench.run(parser.parse_args(["--threads", "0"]))
    with pytest.raises(UserError, match="no run folder"):
        bench.run(parser.parse_args(["--parts", '["search"]', "--run", str(tmp_path / "none")]))
