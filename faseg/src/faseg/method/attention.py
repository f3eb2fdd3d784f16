"""Multi-head attention that also says where it looked, without keeping its probabilities.

DFPQ needs the head-averaged probabilities A of a cross-attention only as the sum A P over the positions of the keys.
`attend` computes that sum beside the values, some heads at a time, and recomputes the probabilities in the backward
pass: what is stored is of the size of the inputs, never Q x N for each head and never Q x N x C.

Shapes: B batch, Q queries, N keys, h heads, d channels of a head, C = h d channels.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faseg.method.dfpq import focus
from paperkit.errors import UserError

SCRATCH = {"cpu": 2**20, "cuda": 2**26}
"""Most probabilities that are held at a time, unless those of one head are more. On a CPU they then stay in cache."""


class Attended(NamedTuple):
    """What an attention gives.

    Attributes:
        values: (B, h, Q, d) from `attend`, (B, Q, C) from `Attention`.
        focus: (B, Q, C'), the head-averaged probabilities times the positions; None where no positions were given.
        map: (B, Q, N), the head-averaged probabilities, without gradient; None where not asked for.
    """

    values: Tensor
    focus: Tensor | None = None
    map: Tensor | None = None


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yields heads and their probabilities (B, some heads, Q, N), of at least float32."""
    batch, heads, queries, keys = *q.shape[:3], k.shape[2]
    held = SCRATCH.get(q.device.type, SCRATCH["cuda"])
    step = min(max(held // max(batch * queries * keys, 1), 1), heads)
    if torch.compiler.is_compiling():  # an exported program has free sizes: how many fit is not known
        step = heads
    for first in range(0, heads, step):
        some = slice(first, first + step)
        scores = q[:, some] @ k[:, some].transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill_(mask[:, None], -torch.inf)
        yield some, scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, positions: Tensor | None, want_map: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    with torch.autocast(q.device.type, enabled=False):
        values, total = [], None
        for some, p in _probabilities(q, k, mask):
            values.append(p.to(v.dtype) @ v[:, some])
            if positions is not None or want_map:
                summed = p.sum(1)
                total = summed if total is None else total.add_(summed)
        mean = None if total is None else total.div_(q.shape[1])
        looked = None if positions is None or mean is None else focus(mean, positions)
    return torch.cat(values, 1), looked, mean if want_map else None


class _Attend(torch.autograd.Function):
    """`_attend`, with the probabilities made again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, positions: Tensor | None, want_map: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.save_for_backward(q, k, v, mask, positions)
        values, looked, mean = _attend(q, k, v, mask, positions, want_map)
        if mean is not None:
            ctx.mark_non_differentiable(mean)
        return values, looked, mean

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_values: Tensor, grad_focus: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        q, k, v, mask, positions = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        of_focus = total = None
        with torch.autocast(q.device.type, enabled=False):
            if positions is not None and grad_focus is not None:
                grad_focus = grad_focus / q.shape[1]
                of_focus = (grad_focus @ positions.to(grad_focus.dtype).transpose(1, 2))[:, None]
            for some, p in _probabilities(q, k, mask):
                narrow = p.to(v.dtype)
                dv[:, some] = narrow.transpose(-1, -2) @ grad_values[:, some]
                ds = (grad_values[:, some] @ v[:, some].transpose(-1, -2)).to(p.dtype)
                if of_focus is not None:
                    ds += of_focus
                    total = p.sum(1) if total is None else total.add_(p.sum(1))
                ds *= p
                ds = ds.addcmul_(p, ds.sum(-1, keepdim=True), value=-1).to(q.dtype)
                dq[:, some] = ds @ k[:, some]
                dk[:, some] = ds.transpose(-1, -2) @ q[:, some]
            moved = None
            if total is not None and grad_focus is not None and ctx.needs_input_grad[4]:
                moved = (total.transpose(1, 2) @ grad_focus).to(positions.dtype)
        return dq, dk, dv, None, moved, None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    want_map: bool = False,
) -> Attended:
    """Attention of every head, and the focus softmax(q k^T) P averaged over heads.

    Args:
        q: (B, h, Q, d), scaled by 1 / sqrt(d). k, v: (B, h, N, d).
        mask: (B, Q, N), True where looking is forbidden, for every head; no row may be all True.
        positions: P, (B, N, C'), of the keys.
        want_map: whether to give the head-averaged probabilities too.
    """
    inputs = (q, k, v, positions)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return Attended(*_Attend.apply(q, k, v, mask, positions, want_map))
    return Attended(*_attend(q, k, v, mask, positions, want_map))


def reset_full_rows(mask: Tensor) -> Tensor:
    """Queries that may look nowhere may look everywhere: rows of (B, Q, N) that are all True become all False."""
    return mask & ~mask.all(-1, keepdim=True)


class Attention(nn.Module):
    """Multi-head attention under the parameter names of `torch.nn.MultiheadAttention`, batch first.

    Args:
        channels: C. heads: h, a divisor of C.

    Raises:
        UserError: if h does not divide C.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise UserError(f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        want_map: bool = False,
    ) -> Attended:
        """(B, Q, C), (B, N, C), (B, N, C) -> (B, Q, C); the options are those of `attend`.

        Without keys (N = 0) the values are zero, and the output is the bias of the last projection.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        if positions is None and not want_map and key.shape[1]:  # torch's own says nothing of N = 0
            attended = Attended(F.scaled_dot_product_attention(q, k, v, None if mask is None else ~mask[:, None]))
        else:
            attended = attend(q * q.shape[-1] ** -0.5, k, v, mask, positions, want_map)
        return attended._replace(values=self.out_proj(attended.values.transpose(1, 2).flatten(2)))
