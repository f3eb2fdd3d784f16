"""Attention of a decoder layer as maps over the picture.

Shapes: B pictures, Q queries, H_l x W_l the map of level l, N its positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from faseg.method.decoder import LayerTrace
from faseg.method.hrca import window_side

Size = tuple[int, int]


def as_map(seen: LayerTrace, sizes: Sequence[Size]) -> Tensor:
    """A layer's attention as maps (B, Q, H_l, W_l); that of a high-resolution layer is 0 outside its windows.

    Args:
        sizes: of all levels, coarse to fine.
    """
    if seen.cells is None:
        return seen.attention.unflatten(2, sizes[seen.level])
    coarse = sizes[0]
    side = window_side(coarse, sizes[seen.level])
    whole = torch.zeros(*seen.attention.shape[:2], coarse[0] * coarse[1], side**2)
    image = torch.arange(len(whole))[:, None]
    whole[image, :, seen.cells] = seen.attention.unflatten(2, (-1, side**2)).transpose(1, 2)
    return whole.unflatten(3, (side, side)).unflatten(2, coarse).transpose(3, 4).flatten(4).flatten(2, 3)


def on_coarse_grid(trace: Sequence[LayerTrace], sizes: Sequence[Size]) -> list[Tensor]:
    """Maps of all layers but the high-resolution ones, (B, Q, N_0) each: on one grid they can be compared."""
    maps = [as_map(seen, sizes) for seen in trace if seen.cells is None]
    return [F.adaptive_avg_pool2d(each, sizes[0]).flatten(2) for each in maps]
