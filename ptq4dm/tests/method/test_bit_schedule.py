"""Bits by step: the SNR rule, smoothing, the budget; and the closed form of part A."""

from pathlib import Path

import pytest
import torch

from paperkit.errors import UserError
from ptq4dm.method.bit_schedule import BitSchedule, budget_schedule, snr_schedule
from ptq4dm.method.gaussian_check import CASES, GaussianCase, final_variances

STEPS = torch.tensor([0, 1, 2, 3])
ALPHAS = torch.tensor([0.99, 0.9, 0.5, 0.1])  # SNR 99, 9, 1, 0.11


def test_smallest_width_above_the_forward_process_else_the_largest() -> None:
    snr = {4: torch.tensor([1.0, 1.0, 2.0, 2.0]), 6: torch.tensor([5.0, 10.0, 2.0, 2.0]), 8: torch.full((4,), 20.0)}
    assert snr_schedule(snr, STEPS, ALPHAS).activation_bits == (8, 6, 4, 4)


def test_smoothed_bits_never_fall_towards_zero() -> None:
    schedule = BitSchedule((0, 1, 2, 3), (4, 8, 4, 6))
    assert schedule.smoothed().activation_bits == (8, 8, 6, 6)
    assert schedule.reversed().activation_bits == (6, 4, 8, 4)


def test_budget_goes_where_the_samples_feel_it() -> None:
    variance = {4: torch.tensor([1.0, 1.0, 1.0, 1.0]), 8: torch.full((4,), 0.1)}
    schedule = budget_schedule(variance, [-1.0, -3.0, -2.0, -0.5], STEPS, mean_bits=6)
    assert schedule.activation_bits == (4, 8, 8, 4) and schedule.mean_bits() == 6
    with pytest.raises(UserError, match="below the smallest width"):
        budget_schedule(variance, [1.0] * 4, STEPS, mean_bits=3)


def test_file_and_bad_bits(tmp_path: Path) -> None:
    schedule = BitSchedule((1, 51), (8, 4), 4)
    schedule.save(tmp_path / "schedule.json")
    assert BitSchedule.load(tmp_path / "schedule.json") == schedule
    with pytest.raises(UserError, match="9"):
        BitSchedule((1,), (9,))


TABLE = (
    (0.1929, 0.1938, 0.1958, 0.1929, 0), (0.1929, 0.2013, 0.2101, 0.1929, 0), (0.1505, 0.1683, 0.1832, 0.1554, 1),
    (0.2332, 0.2354, 0.2362, 0.2332, 0), (0.8636, 0.8850, 0.8966, 0.8636, 0), (0.0300, 0.0370, 0.0410, 0.0327, 1),
)  # fmt: skip


@pytest.mark.parametrize(("case", "row"), list(zip(CASES, TABLE, strict=True)), ids=[c.name for c in CASES])
def test_gaussian_in_closed_form(case: GaussianCase, row: tuple[float, ...]) -> None:
    found = final_variances(case)
    variances = (found.exact, found.uncalibrated, found.official, found.scheduled)
    assert tuple(round(v, 4) for v in variances) == row[:4] and found.zero_steps == row[4]
    off = [abs(v - found.exact) for v in variances]
    assert off[3] < off[1] < off[2]
    if not found.zero_steps:
        assert off[3] < 1e-9
