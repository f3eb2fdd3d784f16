"""Commands `statistics` and `bops`."""

import re
from pathlib import Path

import torch
from made import pixel_folder, ptq4dm

from ptq4dm.method.bit_schedule import BitSchedule
from ptq4dm.method.noise_statistics import NoiseStatistics, StatisticsAccumulator
from ptq4dm.models.official_quantized import write_pairs


def made(path: Path) -> Path:
    sums, random = StatisticsAccumulator(), torch.Generator().manual_seed(0)
    for t in (1, 251, 501, 751):
        eps = torch.randn(4, 3, 4, 4, generator=random)
        sums.add(t, eps, eps * 1.05 + 0.1 * torch.randn(eps.shape, generator=random))
    sums.finish({"steps": 4, "eta": 0.0}).save(path)
    return path


def test_statistics_are_shown_converted_compared_and_interpolated(tmp_path: Path) -> None:
    made(tmp_path / "s.safetensors")
    shown = ptq4dm.here("statistics", "s.safetensors", "--to", "official", cwd=tmp_path).out
    assert "steps 4" in shown and "751" in shown
    ptq4dm.here("statistics", "official", "--compare", "s.safetensors", "--to", "back.safetensors", cwd=tmp_path)
    back, first = (NoiseStatistics.load(tmp_path / name) for name in ("back.safetensors", "s.safetensors"))
    assert torch.equal(back.k, first.k) and torch.equal(back.bias, first.bias)
    ptq4dm.here("statistics", "s.safetensors", "--steps", "10", "--to", "ten.safetensors", cwd=tmp_path)
    ten = NoiseStatistics.load(tmp_path / "ten.safetensors")
    assert len(ten.k) == 10 and ten.identity["interpolated_from"] == 4


def test_authors_pairs_become_statistics(tmp_path: Path) -> None:
    eps, t = torch.randn(6, 3, 4, 4), torch.tensor([1, 1, 1, 501, 501, 501])
    write_pairs(tmp_path / "pairs.pth", eps, 0.1 * eps, t)
    ptq4dm.here("statistics", "pairs.pth", "--to", "s.safetensors", cwd=tmp_path)
    torch.testing.assert_close(NoiseStatistics.load(tmp_path / "s.safetensors").k.float(), torch.full((2,), 0.1))


def test_statistics_of_other_steps_or_none_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "s.safetensors")
    ptq4dm.here("statistics", "s.safetensors", "--steps", "10", "--to", "ten.safetensors", cwd=tmp_path)
    other = ptq4dm.refused("statistics", "s.safetensors", "--compare", "ten.safetensors", cwd=tmp_path)
    assert "are of 10 steps" in other
    assert "missing" in ptq4dm.refused("statistics", "missing.safetensors", cwd=tmp_path)
    assert "outside 1 to 1000" in ptq4dm.refused("statistics", "s.safetensors", "--steps", "0", cwd=tmp_path)


def test_bops_of_the_paper_and_of_a_folder(tmp_path: Path) -> None:
    shown = ptq4dm.here("bops", "cin256-v2", cwd=tmp_path).out
    assert "400.92 M parameters" in shown and "95.90 G of them" in shown and "11.60 T" in shown and "13.8 %" in shown
    pixel_folder(tmp_path / "model")
    BitSchedule((1, 501), (8, 4)).save(tmp_path / "schedule.json")
    words = ("bops", "model", "--schedule", "schedule.json")
    shown = ptq4dm.here(*words, cwd=tmp_path).out
    assert "mean of the schedule, exact" in shown
    assert re.search(r"[1-9]\d*\.\d\d [kM] in layers", shown) and " 0.00" not in shown
    assert "9" in ptq4dm.refused("bops", "cin256-v2", "--weight-bits", "9", cwd=tmp_path)
