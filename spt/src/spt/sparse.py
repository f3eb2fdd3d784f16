"""Unstructured tuning: single entries of a frozen weight, without any dense state (paper section 3.3).

``W' = W; W'[row, col] += value; y = x W'^T`` with W frozen. The released code clones W in every step and keeps the
clone.
Here the entries are written into W for the product alone and the old bits are put back, so nothing of W's size is
made; the backward pass computes only the gradients of the chosen entries.

Shapes: T tokens (all leading dimensions), I input width, O output width, K chosen entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_FLOATS = 1 << 19  # of gathered rows per chunk: 2 MiB, inside a core's second-level cache
DENSE_FROM = 1 / 350  # share of chosen entries above which the dense product is faster on a CPU (measured, `spt bench`)


@dataclass(frozen=True)
class Places:
    """Where the K entries stand, with what the backward pass needs of it worked out once.

    Attributes:
        row, col: (K,) int64 output and input indices.
        used: distinct input indices, ascending.
        position: (K,) place of ``col`` in ``used``.
    """

    row: Tensor
    col: Tensor
    used: Tensor
    position: Tensor

    @classmethod
    def of(cls, row: Tensor, col: Tensor) -> Places:
        """From indices of any integer type."""
        row, col = row.long(), col.long()
        used, position = torch.unique(col, return_inverse=True)
        return cls(row, col, used, position)


@contextmanager
def entries_added(weight: Tensor, row: Tensor, col: Tensor, values: Tensor) -> Iterator[None]:
    """``weight[row, col]`` holds its old value plus ``values`` inside the block, and its old bits after it."""
    before = weight[row, col]
    weight[row, col] = before + values.to(weight.dtype)
    try:
        yield
    finally:
        weight[row, col] = before


def entry_gradients(dy: Tensor, x: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """``g[k] = sum_t dy[t, row[k]] * x[t, col[k]]``: the chosen entries of dy^T x.

    Args:
        dy: (T, O) gradient of the output.
        x: (T, I) input.
        row: (K,) output indices.
        col: (K,) input indices.

    Returns:
        (K,) in float32 or wider. By gathers of K x T products in chunks on a CPU when the entries are few; by the dense
        product otherwise.
    """
    wide = torch.promote_types(torch.promote_types(dy.dtype, x.dtype), torch.float32)
    dense_size = dy.shape[1] * x.shape[1]
    if dy.device.type != "cpu" or row.numel() > DENSE_FROM * dense_size:
        return (dy.to(wide).t() @ x.to(wide))[row, col]
    # Transposed once, so that every gathered row is contiguous.
    dy_ot, x_it = dy.to(wide).t().contiguous(), x.to(wide).t().contiguous()
    step = max(1, CHUNK_FLOATS // max(1, dy.shape[0]))
    chunks = [
        torch.linalg.vecdot(dy_ot.index_select(0, r), x_it.index_select(0, c))
        for r, c in zip(row.split(step), col.split(step), strict=True)
    ]
    return torch.cat(chunks) if chunks else dy.new_zeros(0, dtype=wide)


class _SparseLinear(torch.autograd.Function):
    """y = x (W + scatter(values))^T + bias, with gradients for x, values and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, weight: Tensor, places: Places) -> Tensor:
        with torch.no_grad(), entries_added(weight, places.row, places.col, values):
            y = F.linear(x, weight, bias)
        ctx.narrow = 2 * places.used.numel() < x.shape[-1]  # few columns are used: keep only those of x
        ctx.save_for_backward(x.index_select(-1, places.used) if ctx.narrow else x, values)
        ctx.places, ctx.weight, ctx.x_dtype = places, weight, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        places: Places = ctx.places
        dx = dvalues = dbias = None
        flat_dy = dy.reshape(-1, dy.shape[-1])
        if ctx.needs_input_grad[0]:
            with torch.no_grad(), entries_added(ctx.weight, places.row, places.col, values):
                dx = (dy @ ctx.weight.to(dy.dtype)).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            col = places.position if ctx.narrow else places.col
            dvalues = entry_gradients(flat_dy, x.reshape(-1, x.shape[-1]), places.row, col).to(values.dtype)
        if ctx.needs_input_grad[2]:
            dbias = flat_dy.sum(0)
        return dx, dvalues, dbias, None, None


def sparse_linear(x: Tensor, weight: Tensor, places: Places, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., I) -> (..., O) through ``weight`` (O, I) with ``values`` (K,) added at ``places``.

    ``weight`` is frozen: it gets no gradient and holds its own bits again when the call returns. Two threads must not
    use one weight at the same time.
    """
    return _SparseLinear.apply(x, values, bias, weight, places)
