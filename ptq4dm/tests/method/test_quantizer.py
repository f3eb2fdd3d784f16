"""Gradients against plain autograd, grids, saved state."""

import pytest
import torch
from torch import Tensor

from paperkit.errors import UserError
from ptq4dm.method import quantizer_native
from ptq4dm.method.quantizer import UniformAffineQuantizer, fake_quantize
from ptq4dm.method.range_search import Grid


def plain(x: Tensor, delta: Tensor, zero_point: Tensor) -> Tensor:
    """4 bits, with autograd's own gradients."""
    scaled = x / delta
    code = ((scaled.round() - scaled).detach() + scaled + zero_point).clamp(0, 15)
    return (code - zero_point) * delta


@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_gradients_are_straight_through(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(3, 200, generator=generator, dtype=torch.float64)).requires_grad_()
    delta = (0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    zero_point = torch.full(shape, 5.0, dtype=torch.float64)
    cotangent = torch.randn(3, 200, generator=generator, dtype=torch.float64)
    ours, theirs = fake_quantize(x, delta, zero_point, 4), plain(x, delta, zero_point)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*[torch.autograd.grad((y * cotangent).sum(), (x, delta)) for y in (ours, theirs)], strict=True):
        torch.testing.assert_close(a, b)
    inside = (x / delta).round() + zero_point
    inside = (inside >= 0) & (inside <= 15)
    (gradient,) = torch.autograd.grad(fake_quantize(x, delta, zero_point, 4).sum(), x)
    torch.testing.assert_close(gradient, inside.double())


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5, 5), (3, 64, 32, 32)])
def test_one_pass_gives_the_same_bits(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if quantizer_native.kernels() is None:
        pytest.skip("no compiler")
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.view(-1)[:4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.35])
    given = [x, x.to(memory_format=torch.channels_last) if x.dim() == 4 else x, x.transpose(0, -1), x.double()]
    delta, zero_point = torch.tensor(0.1), torch.tensor(-3.0)
    fast = [fake_quantize(t, delta, zero_point, 8) for t in given]
    monkeypatch.setattr(quantizer_native, "kernels", lambda: None)
    for ours, t in zip(fast, given, strict=True):
        plainly = fake_quantize(t, delta, zero_point, 8)
        torch.testing.assert_close(ours, plainly, rtol=0, atol=0, equal_nan=True)
        assert ours.stride() == plainly.stride()


def test_the_first_tensor_decides_without_gradients() -> None:
    quantizer = UniformAffineQuantizer(4, learned_step=True)
    x = torch.randn(50, requires_grad=True)
    quantizer(x).sum().backward()
    delta = quantizer.delta.clone()
    quantizer(10 * x)
    assert torch.equal(delta, quantizer.delta) and quantizer.delta.is_leaf and quantizer.delta.grad is not None


@pytest.mark.parametrize(("grid", "lowest", "highest"), [("from_zero", 0, 15), ("signed", -8, 7)])
def test_grids_of_q_diffusion(grid: Grid, lowest: int, highest: int) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    quantizer = UniformAffineQuantizer(4, grid=grid)
    codes = (quantizer(x) / quantizer.delta).round()
    assert quantizer.zero_point == 0 and torch.equal(codes, quantizer.codes(x))
    assert codes.min() >= lowest and codes.max() == highest
    assert quantizer(torch.zeros(1)) == 0


def test_a_moving_range() -> None:
    quantizer = UniformAffineQuantizer(8, momentum=0.95)
    quantizer.update_range(torch.tensor([0.0, 1.0]))
    quantizer.update_range(torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(quantizer.delta, torch.tensor((1.05 + 0.05) / 255))
    assert quantizer.zero_point == round(0.05 / (1.1 / 255))


@pytest.mark.parametrize("learned", [False, True])
def test_state_dict_brings_its_shapes(learned: bool) -> None:
    x = torch.randn(5, 4, 3, 3)
    first, second = (UniformAffineQuantizer(4, channel_wise=True, learned_step=learned) for _ in range(2))
    y = first(x)
    second.load_state_dict(first.state_dict())
    assert second.initialised and torch.equal(second(x), y)
    third = UniformAffineQuantizer(4, channel_wise=True)
    third.load_state_dict(UniformAffineQuantizer(4).state_dict())
    assert not third.initialised


def test_impossible_ranges_are_refused() -> None:
    quantizer = UniformAffineQuantizer(4)
    for delta, zero_point in ((torch.ones(2), torch.zeros(1)), (torch.zeros(()), torch.zeros(()))):
        with pytest.raises(UserError, match="one shape"):
            quantizer.set_range(delta, zero_point)
    quantizer.name = "conv_in.act_quantizer"
    with pytest.raises(UserError, match=r"^conv_in\.act_quantizer: the tensor holds NaN"):
        quantizer(torch.tensor([float("nan")]))
