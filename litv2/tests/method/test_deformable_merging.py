"""The forms of the merging against torchvision's operator, values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from litv2.method.deformable_merging import DeformableMerging, DeformConv


def wild(dim: int, spread: float) -> DeformConv:
    """Offsets of about `spread` tokens."""
    layer = DeformConv(dim).double()
    torch.nn.init.normal_(layer.conv_offset.weight, std=spread / (4 * dim) ** 0.5)
    torch.nn.init.normal_(layer.conv_offset.bias, std=spread)
    return layer


@pytest.mark.parametrize("form", ["gather", "grid_sample"])
@pytest.mark.parametrize("grid", [(4, 6), (7, 5), (2, 2), (2, 3), (8, 3)])
@pytest.mark.parametrize("spread", [0.3, 3.0, 40.0])
def test_equals_torchvision(form: str, grid: tuple[int, int], spread: float) -> None:
    layer, x = wild(6, spread), torch.randn(5, *grid, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for which in ("deform_conv2d", form):
        y = layer(x, which)  # type: ignore[arg-type]
        results.append([y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_on_the_border() -> None:
    """Exactly -1 and exactly H sample nothing; an overflowing offset neither crashes nor counts."""
    layer = DeformConv(3).double()
    x = torch.randn(1, 4, 4, 3, dtype=torch.float64)
    for offset in (-1.0, 4.0, 1e30, -1e30):
        with torch.no_grad():
            layer.conv_offset.bias.fill_(offset)
        torch.testing.assert_close(layer(x, "gather"), layer(x, "deform_conv2d"))


def test_offsets_that_are_no_numbers_give_none() -> None:
    """A diverged network must reach the check of its loss, not fail on an index."""
    layer = DeformConv(3)
    with torch.no_grad():
        layer.conv_offset.bias.fill_(float("nan"))
    assert layer(torch.randn(2, 4, 4, 3), "gather").isnan().all()


def test_starts_as_a_plain_convolution() -> None:
    layer, x = DeformConv(5), torch.randn(2, 6, 8, 5)
    plain = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), plain)
    torch.testing.assert_close(layer(x, "conv"), plain)


def test_samples_in_float32_under_autocast() -> None:
    """Half precision would put the sampling places a whole token off on large maps."""
    layer = wild(8, 2.0).float()
    x = torch.randn(1, 8, 8, 8)
    seen = []
    original = F.linear
    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", lambda *a: seen.append(a[0].dtype) or original(*a))
        merged = DeformableMerging(8).eval()
        merged.dconv = layer
        out = merged(x)
    assert seen == [torch.float32]
    exact = merged(x)
    assert (out - exact).abs().max() < 0.2 * exact.abs().max()  # the offset convolution itself ran in bfloat16
