"""Which pairs of tokens are similar: the labels that supervise the hash (paper section 3.3).

Shapes: B batch, H heads, N tokens, C head width, k labels of each sign in a row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from paperkit.errors import UserError

ROWS_AT_ONCE = 1 << 24
"""Numbers of the similarity map that exist at a time; the whole map is never made."""


class PairLabels(NamedTuple):
    """The map S of -1, 0 and +1, its entries that are not zero alone: columns and values, each (B, H, N, 2k)."""

    columns: Tensor
    values: Tensor

    def dense(self) -> Tensor:
        """S (B, H, N, N), for figures and comparisons."""
        n = self.columns.shape[2]
        return self.values.new_zeros(*self.columns.shape[:3], n).scatter_add_(-1, self.columns, self.values)


def pair_labels(u: Tensor, topk: int, mask: Tensor | None = None) -> PairLabels:
    """+1 for the k most similar tokens of each row of u u^T, then -1 for the k least: the second write wins.

    With fewer than 2k tokens some +1 turn to -1; ties fall as in `torch.topk`. S is not symmetric.

    Args:
        u: normalised tokens (B, H, N, C).
        topk: k.
        mask: (B, N), True for a token. Padding is in no pair.

    Raises:
        UserError: fewer tokens than k.
    """
    tokens = u.shape[2]
    if tokens < topk or topk < 1:
        raise UserError(f"{tokens} tokens cannot have {topk} most similar ones; topk is from 1 to the number of tokens")
    u = u.detach()
    rows = max(1, ROWS_AT_ONCE // max(1, u.shape[0] * u.shape[1] * tokens))
    columns, values = [], []
    for start in range(0, tokens, rows):
        similarity = u[:, :, start : start + rows] @ u.mT
        high = low = similarity
        if mask is not None:
            high = similarity.masked_fill(~mask[:, None, None], -torch.inf)
            low = similarity.masked_fill(~mask[:, None, None], torch.inf)
        most, least = high.topk(topk, -1).indices, low.topk(topk, -1, largest=False).indices
        plus = torch.where((most[..., :, None] == least[..., None, :]).any(-1), 0.0, 1.0).to(u.dtype)
        minus = torch.full_like(plus, -1)
        pairs, signs = torch.cat([most, least], -1), torch.cat([plus, minus], -1)
        if mask is not None:
            real = mask[:, None, :, None]
            inside = mask[:, None, None].expand(*similarity.shape).gather(-1, pairs)
            signs = signs * inside * real[:, :, start : start + rows]
        columns.append(pairs)
        values.append(signs)
    return PairLabels(torch.cat(columns, 2), torch.cat(values, 2))


def labels_from_dense(dense: Tensor) -> PairLabels:
    """The entries of a given map (B, H, N, N), as many columns as its fullest row needs."""
    most = max(1, int((dense != 0).sum(-1).max()))
    columns = dense.abs().topk(most, -1).indices
    return PairLabels(columns, dense.gather(-1, columns))
