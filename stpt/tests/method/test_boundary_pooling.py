"""The sparse table against loops over windows: values, first maxima, odd sizes and everything a window may be."""

import pytest
import torch
from torch import Tensor

from stpt.method.boundary_pooling import boundary_max_pooling


def by_loops(x: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Values and the cell of each: the first largest from a to b, or a if b < a."""
    batch, channels, cells = x.shape
    values, places = torch.empty(batch, channels, windows.shape[1]), torch.empty(
        batch, channels, windows.shape[1], dtype=torch.long
    )  # fmt: skip
    for n in range(batch):
        for c in range(channels):
            for k, window in enumerate(windows[n].tolist()):
                a, b = window[:2] if c < channels // 2 else window[2:]
                a, b = (min(max(int(w), 0), cells - 1) for w in (a, b))
                best = a
                for t in range(a, b + 1):
                    if x[n, c, t] > x[n, c, best]:
                        best = t
                values[n, c, k], places[n, c, k] = x[n, c, best], best
    return values, places


def made(batch: int, channels: int, cells: int, proposals: int) -> tuple[Tensor, Tensor]:
    """Features with many ties, and windows across both borders, inverted ones among them."""
    generator = torch.Generator().manual_seed(cells)
    x = torch.randint(-3, 3, (batch, channels, cells), generator=generator).float() / 4
    windows = torch.rand(batch, proposals, 4, generator=generator) * (cells + 4) - 2
    return x, windows


@pytest.mark.parametrize(
    ("batch", "channels", "cells", "proposals"), [(1, 2, 1, 3), (2, 7, 5, 4), (1, 1, 9, 3), (2, 4, 33, 20)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_first_maxima(batch: int, channels: int, cells: int, proposals: int, dtype: torch.dtype) -> None:
    x, windows = made(batch, channels, cells, proposals)
    values, places = by_loops(x, windows)
    given = x.to(dtype).requires_grad_()
    cotangent = torch.randint(1, 5, values.shape).to(dtype)
    with torch.no_grad():
        assert torch.equal(boundary_max_pooling(given, windows), values.to(dtype))
    pooled = boundary_max_pooling(given, windows)
    assert torch.equal(pooled, values.to(dtype))
    pooled.backward(cotangent)
    assert torch.equal(given.grad, torch.zeros_like(x.to(dtype)).scatter_add(2, places, cotangent))


def test_windows_that_no_network_should_give() -> None:
    """Too far, infinite or not a number: cells of the map all the same, never a read outside of it."""
    x = torch.arange(6.0).repeat(1, 2, 1)
    inf, nan = torch.inf, torch.nan
    windows = torch.tensor([[[-inf, inf, 1e30, 1e30], [nan, 2.0, -0.9, 0.9], [3.9, 3.1, 5.0, -inf]]])
    assert boundary_max_pooling(x, windows)[0].tolist() == [[5.0, 2.0, 3.0], [5.0, 0.0, 5.0]]


def test_zeros_of_both_signs_are_equal() -> None:
    x = torch.tensor([[[-1.0, -0.0, 0.0, -0.0]]]).repeat(1, 2, 1).requires_grad_()
    boundary_max_pooling(x, torch.tensor([[[0.0, 3.0, 0.0, 3.0]]])).sum().backward()
    assert x.grad is not None and x.grad[0].tolist() == [[0.0, 1.0, 0.0, 0.0]] * 2


def test_gradient_by_differences_and_none_for_windows() -> None:
    _, windows = made(2, 4, 12, 5)
    windows = windows.double().requires_grad_()
    x = torch.randperm(96).double().view(2, 4, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: boundary_max_pooling(x, windows), x)
    boundary_max_pooling(x, windows).sum().backward()
    assert windows.grad is None


def test_half_precision_windows_keep_their_cells() -> None:
    """Cells beyond 256 have no bfloat16; a float32 window picks them whatever the features' precision."""
    x = torch.zeros(1, 2, 300, dtype=torch.bfloat16)
    x[..., 259] = 1
    windows = torch.tensor([[[258.0, 258.0, 258.0, 258.0], [259.0, 259.0, 259.0, 259.0]]])
    assert boundary_max_pooling(x, windows)[0].tolist() == [[0.0, 1.0]] * 2


def test_compiled_and_exported() -> None:
    x, windows = made(2, 6, 20, 9)
    expected, _ = by_loops(x, windows)
    compiled = torch.compile(boundary_max_pooling, backend="aot_eager", fullgraph=True)
    leaf, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    pooled = compiled(leaf, windows)
    assert torch.equal(pooled, expected)
    pooled.square().sum().backward()
    boundary_max_pooling(plain, windows).square().sum().backward()
    assert torch.equal(leaf.grad, plain.grad)

    class Pool(torch.nn.Module):
        def forward(self, x: Tensor, windows: Tensor) -> Tensor:
            return boundary_max_pooling(x, windows)

    clips = torch.export.Dim("clips", min=1, max=9)
    program = torch.export.export(Pool(), (x, windows), dynamic_shapes=({0: clips}, {0: clips}))
    assert torch.equal(program.module()(x[:1], windows[:1]), expected[:1])
