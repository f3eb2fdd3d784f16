"""Tokens as a grid. Shapes: B batch, H x W tokens, N = H * W in row-major order, C channels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from paperkit.errors import UserError


def on_grid(layer: Callable[[Tensor], Tensor], x: Tensor, H: int | None, W: int | None) -> Tensor:
    """Call a layer that works on (B, H, W, C) with that, or with tokens (B, N, C) and their H and W.

    Raises:
        UserError: N is not H * W.
    """
    if x.ndim == 4:
        return layer(x)
    if H is None or W is None or x.shape[1] != H * W:
        raise UserError(f"{x.shape[1]} tokens are not a grid of {H} x {W}; give H and W, or a (B, H, W, C) tensor")
    return layer(x.unflatten(1, (H, W))).flatten(1, 2)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(B, H, W, C) -> (B, Hp, Wp, C): zeros on the right and at the bottom up to multiples of `multiple`."""
    height, width = x.shape[1:3]
    bottom, right = -height % multiple, -width % multiple
    # Under export the sizes are symbols: a branch on them would nail the graph to one remainder.
    if torch.compiler.is_exporting() or bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x


def copied(x: Tensor) -> Tensor:
    """`x` in contiguous memory, copied in any case: `reshape` and `flatten` copy only where they must, and an
    exported program would then be bound to grids on which they must.
    """
    return x.clone(memory_format=torch.contiguous_format)
