"""2-D relative position on keys and values, as AutoFormer released it.

The embedding of query i and key j is R[i, j] = table_v[row offset] + table_h[column offset], offsets clipped at M;
entry 0 of both tables stands where the class token is involved. Attention adds Q . Rk to the products of queries and
keys, and sum_j A[i, j] Rv[i, j] to the values.

Two forms with the same results. `official` builds R, (N, N, C), as the released code does. The separable form never
does: for patch tokens the key term is a sum of one number per key row and one per key column, and the value term needs
only how much attention falls on each key row and each key column. Both are what indicators do: with s rows and columns,

    Q' = [Q, Q . table_v rows, Q . table_h columns],   K' = [K, 1(row of j), 1(column of j)],   V' likewise,

Q' K'^T is the sum of both terms, and A V' holds the attended values beside the row and column sums of A. Plain fused
attention of width C + 2 s is left, and no N x N tensor of any kind is kept.

Shapes: B batch, H heads, N tokens with the class token first, s side of the patch grid (N = s^2 + 1), C head width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RelativePosition2d(nn.Module):
    """The two tables of offsets, (2 M + 2, C) each, shared by all heads of a layer.

    Args:
        width: stored C. clip: M.
    """

    def __init__(self, width: int, clip: int) -> None:
        super().__init__()
        self.clip = clip
        self.embeddings_table_v = nn.Parameter(torch.empty(2 * clip + 2, width))
        self.embeddings_table_h = nn.Parameter(torch.empty(2 * clip + 2, width))
        nn.init.trunc_normal_(self.embeddings_table_v, std=0.02)
        nn.init.trunc_normal_(self.embeddings_table_h, std=0.02)

    def forward(self, tokens: int, width: int | None = None) -> Tensor:
        """The materialised embedding (N, N, C) of N tokens."""
        rows, columns = _constant(_offsets, tokens, self.clip, self.embeddings_table_v.device)
        return self.embeddings_table_v[:, :width][rows] + self.embeddings_table_h[:, :width][columns]

    def of_grid(self, side: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of row offsets and of column offsets, (s, s, C) each by query's and key's place, and of the class
        token, (C)."""
        offsets = _constant(_side_offsets, side, self.clip, self.embeddings_table_v.device)
        v, h = self.embeddings_table_v[:, :width], self.embeddings_table_h[:, :width]
        return v[offsets], h[offsets], v[0] + h[0]


def _constant(make: Callable[..., Any], *arguments: Any) -> Any:
    """What a function makes, kept between calls; made anew in a traced graph, whose tensors mean nothing outside."""
    return make(*arguments) if torch.compiler.is_compiling() else _kept(make, *arguments)


@functools.lru_cache(maxsize=64)
def _kept(make: Callable[..., Any], *arguments: Any) -> Any:
    with torch.inference_mode(False):  # or a constant made while evaluating could not be used in training
        return make(*arguments)


def _side_offsets(side: int, clip: int, device: torch.device) -> Tensor:
    """Table entries (s, s) for a query's place and a key's place along one side of the grid."""
    place = torch.arange(side, device=device)
    return (place[None, :] - place[:, None]).clamp(-clip, clip) + clip + 1


def _offsets(tokens: int, clip: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Table entries (N, N) of rows and columns; the side is derived from N, the grid taken as square."""
    side = math.isqrt(tokens - 1)
    place = torch.arange(tokens - 1, device=device)
    entries = []
    for line in (place // side, place % side):
        offset = (line[None, :] - line[:, None]).clamp(-clip, clip) + clip + 1
        entries.append(F.pad(offset, (1, 0, 1, 0)))
    return entries[0], entries[1]


def _indicators(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(N, 2 s): which row and which column a token lies in; the class token in none."""
    line = torch.eye(side, device=device, dtype=dtype)
    rows, columns = line.repeat_interleave(side, 0), line.repeat(side, 1)
    return F.pad(torch.cat((rows, columns), 1), (0, 0, 1, 0))


def official_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: RelativePosition2d, values: RelativePosition2d, scale: float
) -> Tensor:
    """The released form: softmax(scale (Q K^T + Q . Rk)) V, plus A . Rv. (B, H, N, C) -> (B, H, N, C)."""
    tokens, width = q.shape[2:]
    logits = q @ k.mT + torch.einsum("bhic,ijc->bhij", q, keys(tokens, width))
    attention = (logits * scale).softmax(-1)
    return attention @ v + torch.einsum("bhij,ijc->bhic", attention, values(tokens, width))


def separable_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: RelativePosition2d, values: RelativePosition2d, scale: float
) -> Tensor:
    """The same without any (N, N) tensor; for a full square grid of patches. (B, H, N, C) -> (B, H, N, C).

    The key term of a query's class key is subtracted from its whole row, which a softmax does not feel: the indicators
    of the class token are then zero. The class token as query meets entry 0 throughout, so it needs no key term.
    """
    batch, heads, tokens, width = q.shape
    side = math.isqrt(tokens - 1)
    rows, columns, of_class = keys.of_grid(side, width)
    patches = q[:, :, 1:].unflatten(2, (side, side))
    by_row = torch.einsum("bhrxc,rkc->bhrxk", patches, rows - of_class)
    by_column = torch.einsum("bhrxc,xkc->bhrxk", patches, columns)
    terms = F.pad(torch.cat((by_row, by_column), -1).flatten(2, 3), (0, 0, 1, 0))

    marks = _constant(_indicators, side, q.device, q.dtype).expand(batch, heads, -1, -1)
    out = F.scaled_dot_product_attention(
        torch.cat((q, terms), -1), torch.cat((k, marks), -1), torch.cat((v, marks), -1), scale=scale
    )
    attended, sums = out[..., :width], out[:, :, 1:, width:].unflatten(2, (side, side))
    rows, columns, of_class = values.of_grid(side, width)
    # A row of attention sums to 1: what its patches do not take falls on the class token, hence the subtraction.
    value_term = torch.einsum("bhrxk,rkc->bhrxc", sums[..., :side], rows - of_class)
    value_term = value_term + torch.einsum("bhrxk,xkc->bhrxc", sums[..., side:], columns)
    return attended + of_class.to(attended.dtype) + F.pad(value_term.flatten(2, 3), (0, 0, 1, 0))
