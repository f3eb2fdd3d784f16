"""HiLo against its formula written out, on the grids where implementations go wrong."""

import pytest
import torch
from made import book_hilo

from litv2.method.hilo import HiLo
from litv2.method.window_attention import window_attention
from paperkit.errors import UserError


@pytest.mark.parametrize(
    ("grid", "window", "alpha"),
    [
        ((4, 4), 2, 0.5),
        ((5, 7), 2, 0.5),
        ((1, 1), 2, 0.5),  # smaller than the window
        ((3, 9), 4, 0.9),
        ((6, 4), 3, 0.0),
        ((6, 5), 3, 1.0),
        ((3, 5), 1, 0.5),  # plain MSA
        ((2, 1), 7, 0.3),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_equals_loops(grid: tuple[int, int], window: int, alpha: float, batch: int) -> None:
    layer = HiLo(24, num_heads=6, window_size=window, alpha=alpha).double()
    x = torch.randn(batch, *grid, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), book_hilo(layer, x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(x.flatten(1, 2), *grid).view_as(x), layer(x))


@pytest.mark.parametrize(("alpha", "lofi"), [(0, 0), (0.2, 2), (0.4, 4), (0.5, 6), (0.7, 8), (0.9, 10), (1.0, 12)])
def test_head_split_truncates(alpha: float, lofi: int) -> None:
    layer = HiLo(48, 12, 2, alpha)
    assert (layer.l_heads, layer.h_heads) == (lofi, 12 - lofi)
    assert hasattr(layer, "l_q") == bool(lofi) and hasattr(layer, "h_qkv") == (lofi < 12)


def test_flops_as_published() -> None:
    assert HiLo(384, 12, window_size=2, alpha=0.5).flops(14, 14) == 83467776


@pytest.mark.parametrize("window", [2, 4, 7])
@pytest.mark.parametrize("form", ["explicit", "sdpa"])
def test_window_forms_agree(window: int, form: str) -> None:
    """Values and gradients of both forms, with and without a mask against padding."""
    qkv = torch.randn(3, 2 * window, 3 * window, 3 * 2 * 8, dtype=torch.float64, requires_grad=True)
    real = torch.ones(2 * window, 3 * window, dtype=torch.float64)
    real[:, -1] = 0
    for mask in (None, real):
        y = [window_attention(qkv, 2, window, 0.3, mask, form=f) for f in ("explicit", form)]  # type: ignore[arg-type]
        torch.testing.assert_close(y[0], y[1])
        grads = [torch.autograd.grad(t.square().sum(), qkv)[0] for t in y]
        torch.testing.assert_close(grads[0], grads[1])


def test_mask_keeps_padding_out() -> None:
    """With the mask, the result on real tokens does not depend on what a padded token would read (the biases)."""
    masked, plain = HiLo(16, 4, 2, 0.5, mask_padding=True), HiLo(16, 4, 2, 0.5)
    plain.load_state_dict(masked.state_dict())
    x = torch.randn(2, 3, 5, 16)
    before = {layer: layer(x)[:, -1] for layer in (masked, plain)}
    with torch.no_grad():
        shift = torch.zeros(24)
        shift[8:16] = 5.0  # moves every key, padded or not, by one vector: a softmax over real keys alone ignores it
        masked.h_qkv.bias += shift
        plain.h_qkv.bias += shift
    torch.testing.assert_close(masked(x)[:, -1], before[masked], rtol=1e-4, atol=1e-5)
    even = torch.randn(2, 4, 6, 16)
    with torch.no_grad():
        plain.load_state_dict(masked.state_dict())
    torch.testing.assert_close(masked(even), plain(even))
    assert not torch.allclose(masked(x), plain(x), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dim=10, num_heads=4), "dim 10 is not a multiple of num_heads 4"),
        (dict(dim=8, num_heads=4, alpha=1.2), r"alpha 1.2 is outside \[0, 1\]"),
        (dict(dim=8, num_heads=4, alpha=-0.1), "outside"),
        (dict(dim=8, num_heads=4, window_size=0), "window_size 0 is below 1"),
        (dict(dim=8, num_heads=4, l_heads=5), "l_heads 5 does not fit 4 heads"),
    ],
)
def test_impossible_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HiLo(**options)  # type: ignore[arg-type]


def test_tokens_need_their_grid() -> None:
    with pytest.raises(UserError, match="6 tokens are not a grid of 2 x 2"):
        HiLo(8, 2)(torch.randn(1, 6, 8), 2, 2)
