"""The bench, shortened: what it races computes what it says, and what it writes."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from bivit.bench import forms, race
from bivit.commands import bench
from bivit.deployment import kernels
from paperkit.command.cli import make_parser
from paperkit.errors import UserError
from paperkit.results import measure


def arguments(*words: str) -> object:
    parser = make_parser("bivit bench")
    bench.add_arguments(parser)
    return parser.parse_args(list(words))


def test_rivals_compute_the_float_network() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)).eval().requires_grad_(False),
        torch.randn(5, 32),
    )
    left_out: list[str] = []
    steps = forms.float_steps(model, x) | forms.exported_steps(model, x, 1, True, left_out.append)
    assert forms.TORCH in steps and forms.ONNX in steps
    expected = model(x)
    for name, step in steps.items():
        out = step()
        found = torch.as_tensor(out[0] if not isinstance(out, torch.Tensor) else out)  # type: ignore[index]
        rough = "int8" in name or "bfloat16" in name
        torch.testing.assert_close(found, expected, rtol=0, atol=0.1 if rough else 1e-5)
    assert torch.get_float32_matmul_precision() == "highest"
    if forms.INT8_OPENVINO not in steps:
        assert any("openvino and nncf" in line for line in left_out)


def test_a_tier_is_forced_for_the_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIVIT_TIER", raising=False)
    own = kernels.tier()
    assert forms.at_tier(kernels.tier, "portable")() == "portable" and kernels.tier() == own


def test_aims_are_of_the_fastest_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed 1 ms; float32 forms of 9 and of 5 ms: 5 times as fast, below the aim of 8; the int8 of 0.5 ms wins."""
    times = {"packed, vpopcnt": 1.0, forms.TORCH: 9.0, forms.ONNX: 5.0, forms.INT8_ONNX: 0.5, "packed, avx512bw": 2.0}

    def compared(baseline: object, variants: dict[str, object], **_: object) -> list[measure.Ratio]:
        made = {"packed, vpopcnt again": 1.0, **{name: times[name] for name in variants}}
        return [measure.Ratio(name, t, t, t, 1e-3, 1e-3 * t, 3) for name, t in made.items()]

    monkeypatch.setattr(race, "compare", compared)
    monkeypatch.setattr(kernels, "available", lambda: ("vpopcnt", "avx512bw", "portable", "torch"))
    rivals = {name: partial(int) for name in (forms.TORCH, forms.ONNX, forms.INT8_ONNX)}
    rows = race.raced({"part": "block", "case": "a", "threads": 1}, int, rivals, race.AIMS.get, 3)
    found = {row["form"]: (row["times"], row["met"]) for row in rows}
    assert found["packed, vpopcnt"] == (5.0, False) and found["packed, avx512bw"] == (2.5, False)
    assert found[forms.INT8_ONNX][1] is False and found[forms.TORCH][1] is None
    assert race.missed({"block": rows})[0] == 3


def test_what_the_command_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(race, "LINEARS", {"DeiT-S fc1": (5, 64, 64), "Swin-T": (5, 100, 33)})
    monkeypatch.setattr(race, "compare", partial(_short, race.compare))
    bench.run(arguments("--quick", "--threads", "1", "--parts", "[linear]", "--output", str(tmp_path)))
    content = json.loads((tmp_path / "bench.json").read_text())
    assert {row["case"] for row in content["linear"]} == {"DeiT-S fc1", "Swin-T"} and content["tier"] == kernels.tier()
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "aims met" in printed and f"tier {kernels.tier()}" in printed


def _short(compare: object, *args: object, **options: object) -> object:
    return compare(*args, **{**options, "pairs": 1, "min_seconds": 0.0})  # type: ignore[operator]


def test_impossible_threads() -> None:
    with pytest.raises(UserError, match=r"^threads 0 is below 1$"):
        bench.run(arguments("--threads", "0"))
