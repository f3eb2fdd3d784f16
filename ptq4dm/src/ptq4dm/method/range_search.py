"""Step and zero point of a uniform grid, from the tensor that it must hold (section 1 of the method; after BRECQ).

The search is the paper's: 80 ranges, each 1 % of the tensor's own range narrower than the one before, judged by the
mean of `|x - fake_quantised(x)| ** 2.4`. All candidates of all channels are scored together: on a CPU by
`quantizer_native.cpp`, elsewhere, and where there is no compiler, by torch in blocks of bounded memory.

Shapes: O channels (1 for a whole tensor), K values of a channel, C candidates.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from paperkit.errors import UserError
from ptq4dm.method.quantizer_native import range_scores

Method = Literal["mse", "max", "max_scale"]
Grid = Literal["unsigned", "from_zero", "signed"]
"""unsigned: 0 .. 2^b - 1 with a zero point (the paper's). Of Q-Diffusion: from_zero, the same with zero point 0, for
what a softmax gives; signed, -2^(b-1) .. 2^(b-1) - 1 with zero point 0."""

CANDIDATES = 80
POWER = 2.4
SMALLEST_STEP = 1e-8
BLOCK = 1 << 17
"""Values that torch scores at a time: half a megabyte in float32."""


def check_bits(bits: int, what: str = "bits") -> None:
    """Raises a UserError unless `bits` is a whole number from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise UserError(f"{what} is {bits}; a quantiser has 2 to 8 bits")


def bounds(bits: int, grid: Grid = "unsigned") -> tuple[int, int]:
    """Smallest and largest integer of a grid."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if grid == "signed" else (0, 2**bits - 1)


def grid_of_range(low: Tensor, high: Tensor, bits: int, grid: Grid = "unsigned") -> tuple[Tensor, Tensor]:
    """Step and zero point of the grid that spans [low, high]; zero points are whole numbers in a float tensor.

    A zero point is not clamped: it is negative where `low` is positive, and 0 is then not on the grid.
    """
    _, top = bounds(bits, grid)
    if grid == "unsigned":
        delta = (high - low) / top
        return delta, (-low / delta).round()
    largest = high if grid == "from_zero" else torch.maximum(low.abs(), high.abs())
    return largest / top, torch.zeros_like(largest)


@torch.no_grad()
def search_range(
    x: Tensor,
    bits: int,
    channel_wise: bool = False,
    method: Method = "mse",
    symmetric: bool = False,
    grid: Grid = "unsigned",
) -> tuple[Tensor, Tensor]:
    """Step and zero point for `x`, each of shape () or, per channel of dimension 0, (O, 1, ..., 1) as `x` has dims.

    A constant tensor or channel has no range to search (the authors' code fails on it). Under `mse` it gets the grid
    between 0 and its value, which holds the value itself; all zeros get step 1 and zero point 0.

    Args:
        x: weights or activations, any shape.
        bits: 2 to 8.
        channel_wise: one range for each entry of dimension 0.
        method: `mse`, the 80-step search, which need not contain 0; `max`, the range of `x` with 0;
            `max_scale`, that range times (bits + 2) / 8.
        symmetric: widens the range of the two `max` methods to [-m, m]; the integers stay as the grid says.
        grid: which integers.

    Raises:
        UserError: bits outside 2 to 8, an empty tensor, values that are NaN or infinite.
    """
    check_bits(bits)
    if not x.numel():
        raise UserError(f"a tensor of shape {tuple(x.shape)} has no values to take a range from")
    x_ok = (x.flatten(1) if x.dim() > 1 else x[:, None]) if channel_wise else x.reshape(1, -1)
    x_ok = x_ok if x_ok.dtype == torch.float64 else x_ok.float()
    low, high = x_ok.aminmax(dim=1)
    if not (low.isfinite() & high.isfinite()).all():
        raise UserError("the tensor holds NaN or infinite values; a range cannot be taken from it")
    if method == "mse":
        delta, zero_point = _mse(x_ok, low, high, bits, grid)
    elif method in ("max", "max_scale"):
        delta, zero_point = _max(low, high, bits, method, symmetric, grid)
    else:
        raise UserError(f"scale method {method!r}; it is one of mse, max, max_scale")
    shape = (-1, *[1] * (x.dim() - 1)) if channel_wise else ()
    return delta.reshape(shape), zero_point.reshape(shape)


def _max(low: Tensor, high: Tensor, bits: int, method: Method, symmetric: bool, grid: Grid) -> tuple[Tensor, Tensor]:
    dtype = low.dtype
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)  # as the authors; a symmetric range is a tie
    if method == "max_scale":
        low, high = low * (bits + 2) / 8, high * (bits + 2) / 8
    if symmetric:
        largest = torch.maximum(low.abs(), high)
        low, high = torch.where(low < 0, -largest, 0.0), largest
    delta, _ = grid_of_range(low, high, bits, grid)
    delta = delta.clamp(min=SMALLEST_STEP)
    zero_point = (-low / delta).round() if grid == "unsigned" else torch.zeros_like(delta)
    return delta.to(dtype), zero_point.to(dtype)


def _mse(x_ok: Tensor, low: Tensor, high: Tensor, bits: int, grid: Grid) -> tuple[Tensor, Tensor]:
    shrink = torch.tensor([1.0 - 0.01 * i for i in range(CANDIDATES)], dtype=x_ok.dtype, device=x_ok.device)
    delta_oc, zero_oc = grid_of_range(low[:, None] * shrink, high[:, None] * shrink, bits, grid)
    scores_oc = _scores(x_ok, delta_oc, zero_oc, *bounds(bits, grid))
    best = torch.where(scores_oc.isnan(), math.inf, scores_oc).argmin(1, keepdim=True)  # argmin: the first of equals
    constant, top = low == high, bounds(bits, grid)[1]
    step = torch.where(high == 0, 1.0, high.abs() / top)
    zero = torch.where(high < 0, top, 0).to(step) if grid == "unsigned" else torch.zeros_like(step)
    delta, zero_point = delta_oc.gather(1, best)[:, 0], zero_oc.gather(1, best)[:, 0]
    return torch.where(constant, step, delta), torch.where(constant, zero, zero_point)


def _scores(x_ok: Tensor, delta_oc: Tensor, zero_oc: Tensor, bottom: int, top: int) -> Tensor:
    """Sum of `|x - fake_quantised(x)| ** 2.4` for every channel and candidate, (O, C) in float64."""
    compiled = range_scores(x_ok, delta_oc, zero_oc, bottom, top)
    if compiled is not None:
        return compiled
    scores = torch.zeros(delta_oc.shape, dtype=torch.float64, device=x_ok.device)
    channels, values = x_ok.shape
    k = min(values, BLOCK)
    c = min(CANDIDATES, max(1, BLOCK // k))
    o = max(1, BLOCK // (k * c))
    for row in range(0, channels, o):
        for column in range(0, values, k):
            x = x_ok[row : row + o, None, column : column + k]
            for first in range(0, CANDIDATES, c):
                at = slice(row, row + o), slice(first, first + c)
                delta, zero = delta_oc[at][..., None], zero_oc[at][..., None]
                y = (x / delta).round_().add_(zero).clamp_(bottom, top).sub_(zero).mul_(delta)
                scores[at] += y.sub_(x).abs_().pow_(POWER).sum(-1)
    return scores
