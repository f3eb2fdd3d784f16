"""The bench of the switches at a tiny size: every figure is there, and noise gets no verdict."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import savings
from paperkit.errors import UserError
from paperkit.results.measure import Ratio
from savings import macs, saved
from savings_report import Line, cells, floor_of_loss, moved, verdict
from savings_trial import AGAIN, BASE, LARGE, SMALL, VARIANTS, Trial

BENCH = Path(savings.__file__).parent


def test_the_command_has_two_verbs() -> None:
    done = subprocess.run([sys.executable, str(BENCH), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "\nsavings     what each of the survey's savings" in done.stdout
    assert "\nguarantees  what the kit's guarantees cost" in done.stdout


def test_a_whole_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "LARGE", replace(LARGE, image=16, width=24, depth=2, batch=4))
    chosen = ["patch_drop 0.5", "ema.decay 0.98"]
    savings.run(Namespace(only=chosen, pairs=1, seeds=2, steps=12, output=str(tmp_path)))
    found = json.loads((tmp_path / "savings.json").read_text())
    assert [line["name"] for line in found["lines"]] == ["plain step again", *chosen]
    for line in found["lines"]:
        assert len(line["equal_steps"]) == len(line["accuracy"]) == 2
        assert line["peak"] > 0 and line["time"]["median"] > 0
    assert found["lines"][1]["macs"] < 0.7 and found["lines"][2]["macs"] == 1
    assert (tmp_path / "savings.png").stat().st_size > 10_000
    assert (tmp_path / "savings.md").read_text().count("\n|") == 5


def test_arithmetic_and_kept_activations() -> None:
    """What is counted, not measured: twice for SAM, a forward pass more for checkpointing, half for half."""
    base, kept = macs(BASE), saved(BASE)
    assert macs(VARIANTS["sam_rho 0.05"]) == 2 * base
    assert 1.2 < macs(VARIANTS["checkpointing"]) / base < 1.34
    assert 0.8 < macs(VARIANTS["keep_hardest 0.5"]) / base < 0.85
    assert 0.55 < macs(VARIANTS["size_schedule: half size for half the run"]) / base < 0.65
    assert saved(VARIANTS["checkpointing"]) < 0.15 * kept
    assert 0.2 < saved(VARIANTS["accumulate_grad_batches 4"]) / kept < 0.3
    assert saved(VARIANTS["attention eager"]) > 1.05 * kept


def test_a_trial_is_its_seed_and_accumulation_its_gradient() -> None:
    torch.set_num_threads(1)

    def weights(name: str, seed: int) -> torch.Tensor:
        trial = Trial(VARIANTS[name], SMALL, seed, steps=3)
        trial.train()
        return trial.model.head.weight.detach()

    plain = weights(BASE.name, 0)
    assert torch.equal(plain, weights(BASE.name, 0))
    assert not torch.equal(plain, weights(BASE.name, 1))
    torch.testing.assert_close(weights("accumulate_grad_batches 4", 0), plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(weights("checkpointing", 0), plain, rtol=0, atol=1e-5)


def line(name: str, low: float, middle: float, high: float, losses: list[float], later: list[float] | None) -> Line:
    ratio = Ratio(name, middle, low, high, 1.0, middle, 9)
    return Line(name, ratio, ratio, 1.0, 1.0, 1.0, 10, losses, later, [90.0] * len(losses))


def test_verdicts_begin_outside_of_the_noise() -> None:
    """Floor of time 0.1; floor of loss 4.604 * sqrt(0.1^2 / 5) = 0.2059, 4.604 being t of 4 degrees at 99.5 %."""
    again = line(AGAIN.name, 0.95, 1.0, 1.1, [1.1, 0.9, 1.1, 0.9, 1.1], None)
    inside = line("a", 0.85, 0.88, 0.91, [1.2] * 5, None)
    faster = line("b", 0.7, 0.75, 0.89, [0.79] * 5, [0.8] * 5)
    uncertain = line("c", 0.95, 1.0, 1.05, [1.9, 0.9, 1.9, 0.9, 1.9], None)
    lines = [again, inside, faster, uncertain]
    assert floor_of_loss(lines) == pytest.approx(0.2059, abs=1e-4)
    ratios = {each.name: each.time for each in lines}
    assert [moved(ratios, each.name) for each in lines] == [False, False, True, False]
    assert [verdict(each, lines) for each in lines] == [
        "the noise floor",
        "within noise",
        "faster, better after equal steps",
        "within noise",
    ]
    assert cells(faster, lines)[1] == "0.75 (0.70-0.89)" and cells(inside, lines)[7] == "the same run"


def test_bad_options() -> None:
    options = {"only": [], "pairs": 1, "seeds": 2, "steps": 12, "output": "unused"}
    with pytest.raises(UserError, match="unknown switch 'speed'; choose from: precision"):
        savings.run(Namespace(**{**options, "only": ["speed"]}))
    with pytest.raises(UserError, match="at least 2 seeds"):
        savings.run(Namespace(**{**options, "seeds": 1}))
