"""Where one token of the last stage looks: its sampling places followed back through the merges (LITv1, figure 5).

An output token of a merging samples at four places (its taps plus offsets). Each place, rounded to the nearest token,
is an output token of the merging before; after three merges 64 places on the finest grid are left, less what fell
outside.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from paperkit.errors import UserError


def trace_offsets(offsets: Sequence[Tensor], target: tuple[int, int]) -> Tensor:
    """Sampling places of one output token on the finest grid.

    Args:
        offsets: one (8, h, w) tensor a merging, the coarsest first; channels (dy, dx) for each of 4 taps.
        target: (row, column) of the output token on the coarsest grid.

    Returns:
        (P, 2): y, x in tokens of the finest grid, not rounded; at most 4 ** merges places, those whose path left a grid
        dropped.
    """
    height, width = offsets[0].shape[1:]
    if not (0 <= target[0] < height and 0 <= target[1] < width):
        raise UserError(f"cell {target} is outside the last map of {height} x {width}")
    taps = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    places = torch.tensor([target], dtype=offsets[0].dtype)
    for level in offsets:
        cells = places.round().long()
        size = torch.tensor(level.shape[1:])
        cells = cells[((cells >= 0) & (cells < size)).all(dim=1)]
        moved = level[:, cells[:, 0], cells[:, 1]].T.unflatten(-1, (4, 2))
        places = (2 * cells[:, None] + taps + moved).flatten(0, 1)
    return places


def pixel_positions(places: Tensor, image_size: int, margin: int = 0, patch_size: int = 4) -> Tensor:
    """(P, 2) places in tokens -> (Q, 2) int64 pixels (x, y) of their centres, those outside the image dropped.

    Args:
        margin: keep drawn marks of this half width inside the image by clamping.
    """
    yx = (places * patch_size + patch_size / 2).round().long()
    inside = ((yx >= 0) & (yx < image_size)).all(dim=1)
    return yx[inside].clamp(margin, image_size - 1 - margin).flip(1)
