"""Ranges against the search written as a loop, on odd tensors, and by both implementations."""

import pytest
import torch
from torch import Tensor

from paperkit.errors import UserError
from ptq4dm.method import quantizer_native, range_search
from ptq4dm.method.quantizer import fake_quantize
from ptq4dm.method.range_search import grid_of_range, search_range


def searched_by_loop(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The search as the paper's code walks it: one candidate after the other."""
    best, found = float("inf"), None
    for i in range(80):
        high, low = x.max() * (1 - 0.01 * i), x.min() * (1 - 0.01 * i)
        delta, zero_point = grid_of_range(low, high, bits)
        score = (x - fake_quantize(x, delta, zero_point, bits)).abs().pow(2.4).mean()
        if score < best:
            best, found = score, (delta, zero_point)
    assert found is not None
    return found


@pytest.fixture(params=["native", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(quantizer_native, "kernels", lambda: None)
    elif quantizer_native.kernels() is None:
        pytest.skip("no compiler")
    return str(request.param)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (7, 300), (3, 1)])
def test_channels_are_searched_each_for_itself(implementation: str, shape: tuple[int, ...], bits: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(bits)) * 3 + 0.5
    if shape[1] == 1:
        x = torch.cat([x, x * 0.3], 1)
    delta, zero_point = search_range(x, bits, channel_wise=True)
    assert delta.shape == zero_point.shape == (len(x), *[1] * (x.dim() - 1))
    for channel, d, z in zip(x, delta, zero_point, strict=True):
        assert (d.item(), z.item()) == tuple(t.item() for t in searched_by_loop(channel, bits))
    whole = search_range(x, bits)
    assert whole[0].shape == () and (whole[0], whole[1]) == searched_by_loop(x, bits)


def test_blocks_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer_native, "kernels", lambda: None)
    x = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    whole = search_range(x, 4, channel_wise=True)
    for block in (1, 7, 64, 300):
        monkeypatch.setattr(range_search, "BLOCK", block)
        assert all(torch.equal(a, b) for a, b in zip(search_range(x, 4, channel_wise=True), whole, strict=True))


def test_both_implementations_score_alike() -> None:
    if quantizer_native.kernels() is None:
        pytest.skip("no compiler")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5000, generator=generator) * torch.tensor([[1e-6], [1.0], [1e5], [0.0]])
    x[3, 0] = 1.0
    low, high = x.aminmax(dim=1)
    shrink = 1 - 0.01 * torch.arange(80)
    grids = grid_of_range(low[:, None] * shrink, high[:, None] * shrink, 4)
    native = range_search._scores(x, *grids, 0, 15)
    wide = range_search._scores(x.double(), grids[0].double(), grids[1].double(), 0, 15)
    torch.testing.assert_close(native, wide, rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("method", ["mse", "max"])
@pytest.mark.parametrize("value", [0.0, 2.5, -0.75])
def test_a_constant_is_on_its_grid(method: str, value: float) -> None:
    x = torch.full((4, 3), value)
    delta, zero_point = search_range(x, 4, method=method)  # type: ignore[arg-type]
    torch.testing.assert_close(fake_quantize(x, delta, zero_point, 4), x, rtol=1e-6, atol=0)
    assert delta.isfinite() and delta > 0


def test_a_constant_channel_leaves_the_others_alone() -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    x[1] = 0
    delta, zero_point = search_range(x, 4, channel_wise=True)
    assert (delta[1], zero_point[1]) == (1, 0)
    assert torch.equal(delta[[0, 2]], search_range(x[[0, 2]], 4, channel_wise=True)[0])


def test_all_positive_values_have_a_negative_zero_point() -> None:
    assert search_range(torch.rand(50) + 3, 4)[1] < 0


@pytest.mark.parametrize("bits", [1, 9, 0, True, 4.0])
def test_bits_outside_are_refused(bits: int) -> None:
    with pytest.raises(UserError, match="2 to 8 bits"):
        search_range(torch.rand(4), bits)


@pytest.mark.parametrize("x", [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.empty(0)])
def test_no_numbers_no_range(x: Tensor) -> None:
    with pytest.raises(UserError):
        search_range(x, 4)
