"""The bench, shortened: what it races computes what it says, what counts, and what is missing."""

from functools import partial
from pathlib import Path
from typing import Any

import made
import pytest
import torch

from paperkit.results.measure import Ratio
from paperkit.results.report import save_figure
from ptq4dm.bench import forms, race
from ptq4dm.deployment import kernels
from ptq4dm.figures.speed import draw_speed
from ptq4dm.method.quant_model import QuantConfig


def tiny_case() -> race.Case:
    draw = torch.Generator().manual_seed(0)
    calls = [(torch.randn(2, 3, 8, 8, generator=draw), torch.tensor([t, t])) for t in (501, 1)]
    return race.Case("tiny", made.tiny_unet().requires_grad_(False), calls)


def test_rivals_compute_the_float_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # half a minute
    case, left_out = tiny_case(), list[str]()
    with torch.no_grad():
        found = forms.forms(case.unet, case.calls, 1, 100, left_out.append)
        expected = found[forms.EAGER](*case.calls[0])
        assert {forms.EAGER, forms.COMPILED, forms.BF16, forms.ONNX} <= {*found}
        for name, form in found.items():
            apart = (form(*case.calls[0]) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            assert apart < (1e-4 if name in forms.FLOAT32 else 0.2), name
        assert len(found) + len(left_out) == 9


def test_no_rival_is_begun_after_its_time() -> None:
    left_out = list[str]()
    case = tiny_case()
    assert [*forms.forms(case.unet, case.calls, 1, -1.0, left_out.append)] == [forms.EAGER]
    assert len(left_out) == 8 and all("are over" in line for line in left_out)


def test_aims_are_of_the_fastest_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Packed 1 ms; float32 forms of 4 and of 1.4 ms: 1.4 times as fast, below the aim of 1.5; a faster int8 wins."""
    monkeypatch.setattr(kernels, "tier", lambda: "vnni")
    times = {f"{race.PACKED} again": 1.0, forms.EAGER: 4.0, forms.ONNX: 1.4, forms.TORCHAO: 3.0, forms.QUANTO: 0.5}
    rows = race.judged(
        {"part": "network", "case": "x"}, [Ratio(n, t, t, t, 1e-3, 1e-3 * t, 3) for n, t in times.items()]
    )
    by_form = {row["form"]: row for row in rows}
    assert by_form[race.PACKED]["times"] == 1.4 and by_form[race.PACKED]["over"] == forms.ONNX
    count, missed = race.missed({"network": rows})
    assert count == 3 and missed == [f"network: x, {race.PACKED}", f"network: x, {forms.QUANTO}"]
    for row in rows:
        row |= {"error": 0.0, "paired distance": None}
    race.show(rows, "a title")
    save_figure(draw_speed(rows, "a machine"), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_other_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on small sizes: what it asserts of results holds; times are not tested."""
    call = (torch.randn(2, 3, 8, 8), torch.tensor([501, 501]))
    monkeypatch.setattr(race, "latent", lambda: race.Case("tiny", made.tiny_unet(), [call]))
    found: dict[str, Any] = {name: race.PARTS[name](True, 1) for name in ("size", "search", "statistics", "scheduler")}
    assert all(row["met"] for row in found["statistics"])
    assert {row["form"] for row in found["size"]} >= {"W8", "W4"}
    assert all(0.1 < row["share"] < 0.6 for row in found["size"])


def test_plain_search_finds_the_same_ranges() -> None:
    """The loop that is raced does the same work."""
    weight = torch.randn(3, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    delta, zero = race.search_range(weight, 8, channel_wise=True)
    plain = torch.tensor([race.plain_search(channel) for channel in weight])
    torch.testing.assert_close(delta.flatten(), plain[:, 0])
    torch.testing.assert_close(zero.flatten(), plain[:, 1])


def test_samples_of_a_form_are_of_one_noise() -> None:
    case = race.Case("digits", race.digit_unet().eval(), [(torch.zeros(2, 1, 8, 8), torch.ones(2))])
    form = forms.Call(case.unet)
    packed = forms.Call(race.pack(race.quantised(case, QuantConfig(8, 8))))
    with torch.no_grad():
        first, second, other = map(partial(race.sampled, case=case), (form, form, packed))
    assert torch.equal(first, second) and not torch.equal(first, other)
