"""Which action each cell of the pyramid learns (AFSD, 3.5): of those that it lies in, the shortest.

Shapes: B clips, K cells, n actions of a clip, N the largest n with one dummy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL_RANGES = ((0, 30), (15, 60), (30, 120), (60, 240), (96, 768), (256, 768))
"""ActivityNet: an action belongs to a level if the farther of its boundaries is this many frames from the cell, the
lower bound left out. They overlap."""


class Matched(NamedTuple):
    """What each cell learns.

    Attributes:
        labels: (B, K) int64, 0 for the background.
        distances: (B, K, 2) frames to start and end; 0 where there is none.
    """

    labels: Tensor
    distances: Tensor


def match(
    priors: Tensor, targets: Sequence[Tensor], frames: int, ranges: Sequence[tuple[float, float]] | None = None
) -> Matched:
    """The shortest action that each cell lies in, the first of equally long ones.

    Args:
        priors: (K, 1 or 2) centres in 0 to 1 and, where ranges are given, levels.
        targets: for each clip (n, 3): start and end in 0 to 1, label from 1 on; n may be 0.
        frames: of the clip.
        ranges: of the farther boundary's distance in frames, by level.

    Raises:
        ValueError: priors without levels, or of levels that have no range.
    """
    actions = _padded(targets, priors)
    left = (priors[:, :1] - actions[:, None, :, 0]) * frames  # (B, K, N)
    right = (actions[:, None, :, 1] - priors[:, :1]) * frames
    inside = (left >= 0) & (right >= 0)
    if ranges is not None:
        low, high = _of_level(priors, ranges)
        farther = torch.maximum(left, right)
        inside &= (farther > low) & (farther <= high)
    shortest, chosen = torch.where(inside, left + right, math.inf).min(2)
    matched = shortest.isfinite()
    labels = torch.where(matched, actions[..., 2].gather(1, chosen), 0).long()
    distances = torch.stack([side.gather(2, chosen[..., None])[..., 0] for side in (left, right)], 2)
    return Matched(labels, torch.where(matched[..., None], distances, 0))


def _padded(targets: Sequence[Tensor], priors: Tensor) -> Tensor:
    """(B, N, 3); what is filled up is an action that no cell lies in, and there is one in every clip."""
    nowhere = priors.new_tensor([math.inf, -math.inf, 0.0])
    actions = nowhere.repeat(len(targets), 1 + max(map(len, targets)), 1)
    for filled, given in zip(actions, targets, strict=True):
        filled[: len(given)] = given
    return actions


def _of_level(priors: Tensor, ranges: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Lower and upper bound of each cell, (K, 1)."""
    if priors.shape[1] < 2:
        raise ValueError("priors without a column of levels have no ranges")
    levels = priors[:, 1].long()
    if int(levels.max()) >= len(ranges):
        raise ValueError(f"a prior of level {int(levels.max())}; there are ranges for {len(ranges)} levels")
    low, high = priors.new_tensor(ranges)[levels].split(1, 1)
    return low, high
