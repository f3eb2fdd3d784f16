"""Unstructured tuning: single entries of a frozen weight, without any dense state (paper section 3.3).

`W' = W; W'[row, col] += value; y = x W'^T` with W frozen. The released code clones W in every step and keeps the
clone. Here the entries are written into W for the product alone and the old bits are put back, so nothing of its size
is made (autocast makes a copy of W in the lower precision anyway; there they go into that). The backward pass computes
the gradients of the chosen entries only.

Shapes: T tokens (all leading dimensions), I input width, O output width, K chosen entries.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_FLOATS = 1 << 17  # of a block of tokens that is transposed: half a MiB, inside a core's second-level cache
# Multiply-adds of a dense product that take as long as one gathered product on a CPU: in true float32, and where
# products may be rounded or the inputs are narrower (measured on the shapes of ViT-B).
DENSE_WORTH, DENSE_WORTH_ROUNDED = 100.0, 800.0
FILL = 128


@dataclass(frozen=True)
class Places:
    """Where the K entries stand, with what the backward pass needs of it worked out once.

    Attributes:
        row, col: (K,) int64 output and input indices.
        rows, cols: distinct ones, ascending; many are filled up to a multiple of 128 with the last one, because the
            product's kernels are kept in memory for every shape that ever occurred.
        row_place, col_place: (K,) place of `row` in `rows` and of `col` in `cols`.
    """

    row: Tensor
    col: Tensor
    rows: Tensor
    cols: Tensor
    row_place: Tensor
    col_place: Tensor

    @classmethod
    def of(cls, row: Tensor, col: Tensor) -> "Places":
        """From indices of any integer type."""
        row, col = row.long(), col.long()
        rows, row_place = torch.unique(row, return_inverse=True)
        cols, col_place = torch.unique(col, return_inverse=True)
        return cls(row, col, _filled(rows), _filled(cols), row_place, col_place)


def _filled(index: Tensor) -> Tensor:
    missing = -index.numel() % FILL if index.numel() > FILL else 0
    return torch.cat([index, index[-1:].expand(missing)])


@contextmanager
def entries_added(weight: Tensor, row: Tensor, col: Tensor, values: Tensor) -> Iterator[None]:
    """`weight[row, col]` holds its old value plus `values` inside the block, and its old bits after it."""
    before = weight[row, col]
    weight[row, col] = before + values.to(weight.dtype)
    try:
        yield
    finally:
        weight[row, col] = before


def entry_gradients(dy: Tensor, x: Tensor, places: Places, few: bool = False) -> Tensor:
    """`g[k] = sum_t dy[t, row[k]] * x[t, col[k]]`: the chosen entries of dy^T x.

    Only the columns that some entry uses are touched. Of these the dense product is taken where it is faster than to
    gather K pairs a token, which is nearly always on a GPU.

    Args:
        dy: (T, O) gradient of the output.
        x: (T, I) input, or (T, len(places.cols)), its used columns.
        few: the latter.

    Returns:
        (K,) in float32 or wider.
    """
    wide = torch.promote_types(torch.promote_types(dy.dtype, x.dtype), torch.float32)
    narrow = dy.dtype if dy.dtype == x.dtype else wide  # both of the lower precision: its product is what is wanted
    used_dy = dy.index_select(1, places.rows).to(narrow)
    used_x = (x if few else x.index_select(1, places.cols)).to(narrow)
    dense, gathered = places.rows.numel() * places.cols.numel(), places.row.numel()
    rounded = torch.get_float32_matmul_precision() != "highest" or dy.dtype != wide
    worth = DENSE_WORTH_ROUNDED if rounded else DENSE_WORTH
    if dy.device.type != "cpu" or dense <= worth * gathered:
        return (used_dy.t() @ used_x)[places.row_place, places.col_place].to(wide)
    total = dy.new_zeros(gathered, dtype=wide)
    step = max(1, CHUNK_FLOATS // max(1, used_dy.shape[1] + used_x.shape[1]))
    for dy_tr, x_tc in zip(used_dy.split(step), used_x.split(step), strict=True):
        # Transposed, so that every gathered row is contiguous.
        dy_rt, x_ct = dy_tr.t().to(wide).contiguous(), x_tc.t().to(wide).contiguous()
        total += torch.linalg.vecdot(dy_rt.index_select(0, places.row_place), x_ct.index_select(0, places.col_place))
    return total


class _FrozenLinear(torch.autograd.Function):
    """y = x (W + scatter(values))^T + bias, then `y[..., start : start + P] += h up^T`; gradients for all but W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor | None,
        bias: Tensor | None,
        weight: Tensor,
        places: Places | None,
        starts: tuple[int, ...],
        *added: Tensor,
    ) -> Tensor:
        ctx.places, ctx.weight, ctx.x_dtype, ctx.starts = places, weight, x.dtype, starts
        kept: list[Tensor] = []
        low = _autocast_dtype(weight)
        if low is None:
            with torch.no_grad(), _weight_with(weight, places, values):
                y = F.linear(x, weight, bias)
            if y._is_view():  # of rows of tokens; autograd would refuse a caller that adds to it in place (SwinV2)
                y = torch.ops.aten._unsafe_view(y, y.shape)
        else:
            # The product needs a copy in the lower precision anyway, so the entries go into that, and it is kept for
            # the backward pass, as autocast does.
            x, used = x.to(low), weight.to(low)
            if places is not None and values is not None:
                used[places.row, places.col] = (weight[places.row, places.col] + values.to(weight.dtype)).to(low)
            y = F.linear(x, used, bias)
            kept.append(used)
        flat_y = y.view(-1, y.shape[-1])
        for start, h, up in zip(starts, added[::2], added[1::2], strict=True):
            rows = flat_y.narrow(1, start, up.shape[0])
            rows.addmm_(h.reshape(-1, h.shape[-1]).to(y.dtype), up.t().to(y.dtype))
        if places is not None and values is not None:
            # Few columns are used: keep only those of x.
            ctx.few = 2 * places.cols.numel() < x.shape[-1]
            kept += [x.index_select(-1, places.cols) if ctx.few else x, values]
        ctx.low = low is not None
        ctx.save_for_backward(*added, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        places: Places | None = ctx.places
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        added, kept = saved[: 2 * len(ctx.starts)], list(saved[2 * len(ctx.starts) :])
        used = kept.pop(0) if ctx.low else ctx.weight  # then kept holds nothing, or x and values
        dx = dvalues = dbias = None
        flat_dy = dy.reshape(-1, dy.shape[-1])
        if ctx.needs_input_grad[0]:
            with torch.no_grad(), _weight_with(used, places, kept[-1] if kept and not ctx.low else None):
                dx = (dy @ used.to(dy.dtype)).to(ctx.x_dtype)
        if places is not None and ctx.needs_input_grad[1]:
            x, values = kept
            dvalues = entry_gradients(flat_dy, x.reshape(-1, x.shape[-1]), places, ctx.few).to(values.dtype)
        if ctx.needs_input_grad[2]:
            dbias = flat_dy.sum(0)
        low_rank: list[Tensor] = []
        for start, h, up in zip(ctx.starts, added[::2], added[1::2], strict=True):
            dz = flat_dy.narrow(1, start, up.shape[0])
            flat_h = h.reshape(-1, h.shape[-1])
            dh = (dz @ up.to(dz.dtype)).reshape(h.shape).to(h.dtype)
            low_rank += [dh, (dz.t() @ flat_h.to(dz.dtype)).to(up.dtype)]
        return dx, dvalues, dbias, None, None, None, *low_rank


def _autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """The lower precision that products on the weight's device run in, if any."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    return dtype if dtype != weight.dtype else None


def _weight_with(weight: Tensor, places: Places | None, values: Tensor | None) -> AbstractContextManager[None]:
    if places is None or values is None:
        return nullcontext()
    return entries_added(weight, places.row, places.col, values)


def frozen_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    places: Places | None = None,
    values: Tensor | None = None,
    added: Sequence[tuple[int, Tensor, Tensor]] = (),
) -> Tensor:
    """(..., I) -> (..., O) through `weight` (O, I) with `values` (K,) added at `places`.

    `weight` is frozen: it gets no gradient and holds its own bits again when the call returns. Two threads must not
    use one weight at the same time.

    Args:
        bias: (O,).
        added: (first row, h (..., r), up (P, r)): h up^T is added to P rows of the output, without a tensor of its own.
    """
    if places is None and not added:
        return F.linear(x, weight, bias)
    starts = tuple(start for start, _, _ in added)
    return _FrozenLinear.apply(x, values, bias, weight, places, starts, *(t for _, h, up in added for t in (h, up)))
