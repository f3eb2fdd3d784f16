"""High-resolution cross-attention on a few windows of the finest map (arXiv 2204.01244).

A layer on the 1/4 map looks only into those cells of the 1/32 grid that the preceding 1/32 layer looked at most,
summed over all queries: N_0 // omega cells, each a window of 8 x 8 fine tokens that all queries share.

Shapes: B batch, Q queries, N_0 = H_0 W_0 coarse cells, k chosen ones, w window side, T = k w w tokens, C channels.
"""

import torch
from torch import Tensor

from paperkit.errors import UserError


def check_omega(omega: int) -> None:
    """Raises a UserError for an omega that keeps no share of the windows."""
    if omega < 1:
        raise UserError(f"omega {omega}: one in how many windows is kept, 1 or more")


def choose_windows(coarse_map: Tensor, omega: int, min_windows: int = 0) -> Tensor:
    """The cells with the most attention, (B, Q, N_0) -> (B, k), most first.

    Args:
        coarse_map: head-averaged attention of the 1/32 layer.
        omega: 1 in how many cells is kept; k = N_0 // omega, rounded down, may be 0.
        min_windows: least k; the released code has 0 and then attends to nothing on pictures below omega cells.
    """
    check_omega(omega)
    cells = coarse_map.shape[-1]
    return coarse_map.detach().sum(1).topk(min(max(cells // omega, min_windows), cells)).indices


def window_side(coarse: torch.Size | tuple[int, int], fine: torch.Size | tuple[int, int]) -> int:
    """w, so that the fine map is the coarse grid in windows of w x w.

    Raises:
        UserError: if no w fits.
    """
    side = fine[0] // coarse[0]
    if (coarse[0] * side, coarse[1] * side) != tuple(fine):
        raise UserError(
            f"a map of {fine[0]}x{fine[1]} is not cut by a grid of {coarse[0]}x{coarse[1]} into square windows; "
            "pad pictures to multiples of 32"
        )
    return side


def gather_windows(fine_map: Tensor, cells: Tensor, coarse: torch.Size | tuple[int, int]) -> Tensor:
    """Tokens of the chosen windows, in the order of `cells`, raster order inside: (B, C, H, W), (B, k) -> (B, T, C)."""
    side = window_side(coarse, fine_map.shape[-2:])
    cut = fine_map.unflatten(3, (coarse[1], side)).unflatten(2, (coarse[0], side))
    windows = cut.permute(0, 2, 4, 3, 5, 1)  # (B, H_0, W_0, w, w, C), a view: only what is chosen is copied
    image = torch.arange(cells.shape[0], device=cells.device)[:, None]
    return windows[image, cells // coarse[1], cells % coarse[1]].flatten(1, 3)
