"""Boundary windows of coarse segments, and the branch that refines with what is pooled there (AFSD, 3.2 and 3.3).

Shapes: B clips, C channels, T cells of a level, K proposals (one a cell).
"""

import torch
from torch import Tensor, nn

from stpt.method.boundary_pooling import boundary_max_pooling
from stpt.method.convolutions import Unit1D
from stpt.method.pyramid import HeadNorm, norm_relu


class ScaleExp(nn.Module):
    """exp(scale x), in float32 at least: distances of a level, with a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return (self.scale * x.to(torch.promote_types(x.dtype, torch.float32))).exp()


def windows_around(start: Tensor, end: Tensor, length: Tensor) -> Tensor:
    """Windows that reach a tenth of the length outwards and a quarter inwards, one cell at least, rounded half to even.

    Args:
        start, end, length: (B, K), in the cells of the windows.

    Returns:
        (B, K, 4): around the start, then around the end.
    """
    inner, outer = (length / 4).clamp(min=1), (length / 10).clamp(min=1)
    return torch.stack([start - outer, start + inner, end - inner, end + outer], 2).round()


def level_windows(loc: Tensor, frames: int) -> Tensor:
    """Windows in the cells of a level, around the cell of each prior.

    Args:
        loc: (B, T, 2) distances of the level's cells to start and end, in frames of the clip.
        frames: of the clip.
    """
    cells = loc.shape[1]
    left, right = (loc / frames * cells).unbind(2)
    centre = torch.arange(cells, device=loc.device, dtype=loc.dtype)
    return windows_around(centre - left, centre + right, left + right)


def frame_windows(segments: Tensor) -> Tensor:
    """Windows in frames around segments (B, K, 2): starts and ends, whose frames both count into the length."""
    start, end = segments.unbind(2)
    return windows_around(start, end, end - start + 1)


class ProposalBranch(nn.Module):
    """Features of each cell with those of its segment's boundaries, from its level and from the frames.

    Args:
        in_channels: of the towers' features, and of what comes out.
        channels: C; the features for boundaries have 2 C, half for starts and half for ends.
    """

    def __init__(self, in_channels: int, channels: int, norm: HeadNorm = "gn", groups: int = 32) -> None:
        super().__init__()
        self.cur_point_conv = norm_relu(Unit1D(in_channels, channels, 1), channels, norm, groups)
        self.lr_conv = norm_relu(Unit1D(in_channels, 2 * channels, 1), 2 * channels, norm, groups)
        self.roi_conv = norm_relu(Unit1D(channels, channels, 1), channels, norm, groups)
        self.proposal_conv = norm_relu(Unit1D(4 * channels, in_channels, 1), in_channels, norm, groups)

    def forward(self, feature: Tensor, frame_pooled: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Refinement features (B, in_channels, T), and the boundary-sensitive ones (B, 2 C, T) that they pool from.

        Args:
            feature: (B, in_channels, T) of a tower.
            frame_pooled: (B, C, T) the frame-level features, pooled over the segments' windows in frames.
            windows: (B, T, 4) in cells of the level.
        """
        sensitive = self.lr_conv(feature)
        pooled = boundary_max_pooling(sensitive, windows)
        together = torch.cat([self.roi_conv(frame_pooled), pooled, self.cur_point_conv(feature)], 1)
        return self.proposal_conv(together), sensitive
