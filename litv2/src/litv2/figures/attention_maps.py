"""What one token looks at: the softmax weights of HiLo's two groups for one query.

Shapes: B = 1 image, H x W tokens, D channels, s window, n heads of a group, d head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from litv2.method.hilo import HiLo
from litv2.method.token_grid import pad_to_multiple
from paperkit.errors import UserError


class QueryWeights(NamedTuple):
    """Weights of one query; each head's sum to 1. None for a group without heads.

    Attributes:
        lofi: (n, Hp / s, Wp / s), one weight for each pooled token.
        hifi: (n, s, s), one for each token of the query's own window.
        window: (row, column) of that window's first token.
    """

    lofi: Tensor | None
    hifi: Tensor | None
    window: tuple[int, int]


@torch.no_grad()
def query_weights(layer: HiLo, x: Tensor, query: tuple[int, int]) -> QueryWeights:
    """The weights with which the token at `query` (row, column) of the layer's input (1, H, W, D) is computed.

    Raises:
        UserError: a query outside the grid.
    """
    (row, column), (height, width), s = query, x.shape[1:3], layer.window_size
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(f"query {row}, {column} is outside the grid of {height} x {width} tokens")
    x = pad_to_multiple(x, s)
    q, qkv = layer.read(x)
    lofi = hifi = None
    if q is not None:
        q_nd = q[0, row, column].unflatten(0, (layer.l_heads, -1))
        k_knd = layer.read_pooled(x)[0].unflatten(-1, (2, layer.l_heads, -1))[:, 0]
        logits_nk = torch.einsum("nd,knd->nk", q_nd, k_knd) * layer.scale
        lofi = logits_nk.softmax(dim=-1).unflatten(-1, (x.shape[1] // s, x.shape[2] // s))
    top, left = row // s * s, column // s * s
    if qkv is not None:
        window = qkv[0, top : top + s, left : left + s].unflatten(-1, (3, layer.h_heads, -1))
        q_nd, k_yxnd = window[row - top, column - left, 0], window[:, :, 1]
        logits = torch.einsum("nd,yxnd->nyx", q_nd, k_yxnd) * layer.scale
        hifi = logits.flatten(1).softmax(dim=-1).unflatten(-1, (s, s))
    return QueryWeights(lofi, hifi, (top, left))
