"""Streaming statistics of the quantisation noise against stored pairs, scipy and what must be refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import linregress
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.weights import save_weights
from ptq4dm.method.noise_statistics import NoiseStatistics, StatisticsAccumulator

STEPS = (1, 251, 501, 751)


def pairs(seed: int = 0) -> dict[int, tuple[Tensor, Tensor]]:
    """Time step -> predictions (12, 3, 4, 4) of both networks, with slope and bias that change with t."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for i, t in enumerate(STEPS):
        eps = torch.randn(12, 3, 4, 4, generator=random)
        noise = torch.randn(12, 3, 4, 4, generator=random)
        bias = torch.tensor([0.1, -0.2, 0.05])[:, None, None]
        found[t] = (eps, eps * (0.95 + 0.04 * i) + bias + 0.1 * noise)
    return found


def collected(batch: int = 5, identity: dict[str, object] | None = None) -> NoiseStatistics:
    sums = StatisticsAccumulator()
    for t, (eps, eps_q) in pairs().items():
        for first in range(0, len(eps), batch):
            sums.add(t, eps[first : first + batch], eps_q[first : first + batch])
    return sums.finish(identity)


@pytest.mark.parametrize("batch", [1, 5, 12])
def test_streaming_equals_stored_pairs(batch: int) -> None:
    found = collected(batch)
    for row, (eps, eps_q) in enumerate(pairs().values()):
        error = eps_q.double() - eps.double()
        line = linregress(eps.flatten().double(), error.flatten())
        residual = error - max(line.slope, 0) * eps.double()
        assert float(found.k[row]) == pytest.approx(line.slope, rel=1e-9)
        assert float(found.r[row]) == pytest.approx(line.rvalue, rel=1e-9)
        torch.testing.assert_close(found.bias[row], error.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
        assert float(found.residual_std[row]) == pytest.approx(float(residual.flatten(1).std(1).mean()), rel=1e-9)
        assert float(found.snr[row]) == pytest.approx(float(eps.double().square().sum() / error.square().sum()))
    assert found.count.tolist() == [12] * 4


def test_merged_parts_equal_the_whole() -> None:
    total = StatisticsAccumulator()
    for half in (slice(0, 6), slice(6, 12)):
        part = StatisticsAccumulator()
        for t, (eps, eps_q) in pairs().items():
            part.add(t, eps[half], eps_q[half])
        total.merge(part.state())
    whole, merged = collected(6), total.finish()
    for name in ("k", "r", "bias", "residual_std", "snr", "mean", "count"):
        assert torch.equal(getattr(whole, name), getattr(merged, name)), name


def test_file_keeps_everything_and_refuses_another_setting(tmp_path: Path) -> None:
    found = collected(identity={"steps": 4, "guidance": 3.0})
    found.save(tmp_path / "s.safetensors")
    loaded = NoiseStatistics.load(tmp_path / "s.safetensors")
    assert torch.equal(loaded.bias, found.bias) and loaded.identity == {"steps": 4, "guidance": 3.0}
    loaded.check({"steps": 4})
    with pytest.raises(UserError, match=r"guidance 3.0 do not fit guidance 1.5"):
        loaded.check({"steps": 4, "guidance": 1.5})
    with pytest.raises(UserError, match="eta unknown"):
        loaded.check({"eta": 0.0})
    with pytest.raises(UserError, match="collect them again, or interpolate"):
        loaded.check_timesteps(torch.tensor([501, 1]))
    save_weights(tmp_path / "other.safetensors", {"k": torch.zeros(2)})
    with pytest.raises(UserError, match="no file of noise statistics"):
        NoiseStatistics.load(tmp_path / "other.safetensors")


def test_interpolation_keeps_known_steps_and_lies_between() -> None:
    found, alphas = collected(), torch.linspace(0.9999, 0.01, 1000)
    same = found.interpolated(torch.tensor(STEPS), alphas)
    torch.testing.assert_close(same.k, found.k)
    between = found.interpolated(torch.tensor([999, 600, 1]), alphas)
    assert between.timesteps.tolist() == [1, 600, 999]
    assert found.k[2] < between.k[1] < found.k[3]
    assert between.k[2] == found.k[3]


@pytest.mark.parametrize("bad", [torch.full((2, 3, 4, 4), float("nan")), torch.zeros(2, 3, 4, 5)])
def test_no_pair_is_refused(bad: Tensor) -> None:
    with pytest.raises(UserError, match=r"NaN|no pair"):
        StatisticsAccumulator().add(1, torch.zeros(2, 3, 4, 4), bad)


def test_equal_predictions_have_no_error() -> None:
    sums = StatisticsAccumulator()
    sums.add(1, torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
    found = sums.finish()
    assert found.k.item() == found.residual_std.item() == found.bias.abs().max() == 0
    assert found.snr.item() == float("inf")
    with pytest.raises(UserError, match="no pair"):
        StatisticsAccumulator().finish()


@pytest.mark.parametrize("name", ["k", "bias", "residual_std"])
def test_rows_that_are_no_numbers_are_refused(name: str) -> None:
    found = collected()
    with pytest.raises(UserError, match=f"{name} holds NaN"):
        replace(found, **{name: torch.full_like(getattr(found, name), float("nan"))})
