"""Ratios, peaks and saved bytes, on work whose cost is known."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from paperkit.errors import UserError
from paperkit.results import measure
from paperkit.results.measure import MEBIBYTE, Ratio, compare, peak_rss, saved_bytes


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_compare_finds_known_ratios() -> None:
    """Sleeps cost what they say, so the ratios are known; the first line is the baseline against itself."""
    steps = {"half": lambda: time.sleep(0.02), "double": lambda: time.sleep(0.08)}
    again, half, double = compare(lambda: time.sleep(0.04), steps, pairs=3, warmup=1, min_seconds=0)
    assert [r.name for r in (again, half, double)] == ["baseline again", "half", "double"]
    assert half.median < 0.8 < again.median < 1.6 < double.median
    assert all(r.q25 <= r.median <= r.q75 and r.pairs == 3 for r in (again, half, double))
    assert 0.04 <= double.baseline_seconds < double.seconds and double.seconds >= 0.08


def test_compare_alternates_and_repeats_short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a made clock: each tick is one call, so the order of calls and the numbers are exact."""
    now, order = [0.0], []
    monkeypatch.setattr(measure, "timer", lambda: now[0])

    def step(name: str, seconds: float) -> None:
        now[0] += seconds
        order.append(name)

    ratios = compare(
        lambda: step("b", 1.0), {"v": lambda: step("v", 0.25)}, pairs=2, warmup=2, min_seconds=1.0, name="plain"
    )
    assert [(r.name, r.median, r.q25, r.q75) for r in ratios] == [("plain again", 1, 1, 1), ("v", 0.25, 0.25, 0.25)]
    assert (ratios[1].baseline_seconds, ratios[1].seconds) == (1.0, 0.25)
    warmup, pairs = "".join(order)[:6], "".join(order)[6:]
    assert warmup == "bbbbvv"
    assert pairs == "bb" + "bvvvv" + "bb" + "vvvvb"  # v is short: four calls a timing; the second pair runs it first


def test_print_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    measure.print_ratios([Ratio("bf16", 0.5, 0.49, 0.52, 0.01, 0.005, 9)], "step")
    assert capsys.readouterr().out.splitlines()[-1].split() == ["bf16", "0.500", "0.490", "0.520", "5"]


CHILD = """
import sys
from paperkit.results.measure import mark_start
before = bytearray(80 << 20)
del before
kept = bytearray(20 << 20)
mark_start()
work = b"x" * (int(sys.argv[1]) << 20)
del work
"""


def test_peak_rss_counts_what_comes_after_the_start() -> None:
    """Neither a transient peak before the start, nor this process's own size, nor memory given back hides the work."""
    ballast = bytearray(300 << 20)
    small, large = (peak_rss([sys.executable, "-c", CHILD, size]) for size in ("10", "50"))
    assert len(ballast) and small.start < 1 << 40
    assert 9 * MEBIBYTE < small.above < 20 * MEBIBYTE
    assert 38 * MEBIBYTE < large.above - small.above < 42 * MEBIBYTE


def test_peak_rss_of_a_failing_command() -> None:
    with pytest.raises(UserError, match=r"exit code 1 of .*: out of luck"):
        peak_rss([sys.executable, "-c", "raise SystemExit('out of luck')"])
    with pytest.raises(UserError, match=r"never called paperkit\.results\.measure\.mark_start"):
        peak_rss([sys.executable, "-c", "pass"])
    with pytest.raises(UserError, match="not done after"):
        peak_rss([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)


def test_mark_start_alone_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERKIT_PEAK_FILE", raising=False)
    measure.mark_start()


def test_saved_bytes_by_hand() -> None:
    """Linear keeps its input; ReLU its output, which the next Linear keeps as well: once."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(32, 8)
    assert saved_bytes(lambda: model(x)) == 4 * 32 * (8 + 16)
    assert saved_bytes(lambda: model(x.requires_grad_()).sum()) == 4 * 32 * (8 + 16)  # weights do not count
    with torch.no_grad():
        assert saved_bytes(lambda: model(x)) == 0


def test_saved_bytes_sees_checkpointing() -> None:
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)) for _ in range(4))
    x = torch.randn(32, 8, requires_grad=True)

    def forward(rematerialise: bool) -> torch.Tensor:
        y = x
        for block in blocks:
            y = checkpoint(block, y, use_reentrant=False) if rematerialise else block(y)
        return y

    assert saved_bytes(lambda: forward(True)) == 4 * 32 * 8 * 4  # the input of each block
    assert saved_bytes(lambda: forward(False)) == 4 * 32 * (8 + 64 + 64) * 4


def test_saved_bytes_leaves_out_detached_weights_of_a_named_model() -> None:
    layer, x = nn.Linear(8, 8, bias=False), torch.randn(2, 8, requires_grad=True)
    detached = lambda: x @ layer.weight.detach()  # noqa: E731
    assert saved_bytes(detached) == 4 * 64 and saved_bytes(detached, layer) == 0


def test_write_bench(tmp_path: Path) -> None:
    measure.write_bench(tmp_path / "bench.json", "snnet", step=[Ratio("bf16", 0.5, 0.4, 0.6, 1.0, 0.5, 9)], notes="n")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["step"][0]["median"] == 0.5 and content["notes"] == "n" and content["paper"] == "snnet"
    machine = content["machine"]
    assert machine["threads"] == 1 and machine["float32_matmul_precision"] == torch.get_float32_matmul_precision()
    assert machine["versions"]["torch"] == torch.__version__.split("+")[0] and machine["cpu"]["cores"] >= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_is_waited_for_and_measured() -> None:
    x = torch.randn(4096, 4096, device="cuda")
    once, many = lambda: x @ x, lambda: [x @ x for _ in range(4)]
    _, four = compare(once, {"four": many}, pairs=5)
    assert 3 < four.median < 5  # without waiting for the device, launches alone would be timed
    size = x.numel() * 4
    assert size <= measure.peak_cuda(once) < 1.5 * size
