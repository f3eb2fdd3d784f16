"""Boundary consistency learning: parts of a cut action against what was put between them (AFSD, 3.4).

The clip's action is cut and background is put into the cut (`stpt.method.splice`). The end of the first part should
look like the start of the second, not like the start of the background.
Shapes: B clips, C channels of half a map.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Parts = Sequence[Tensor]
"""Features (B, C) of one boundary on each of the maps."""
MAP_WEIGHTS = (1.0, 0.1, 0.1)
"""Frame-level features; boundary-sensitive ones of the location and of the class branch."""


def triplet(
    anchors: Parts,
    positives: Parts,
    negatives: Parts,
    weights: Sequence[float] = MAP_WEIGHTS,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Triplet margin losses of the maps, weighted and summed.

    Args:
        anchors: ends of the first part. positives: starts of the second. negatives: starts of the inserted background.
        weights: of the maps.
        margin, p, eps, reduction: of `torch.nn.functional.triplet_margin_loss`; the reduction is over clips.
    """
    total = torch.zeros((), device=anchors[0].device)
    for weight, *parts in zip(weights, anchors, positives, negatives, strict=True):
        anchor, positive, negative = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts)
        loss = F.triplet_margin_loss(anchor, positive, negative, margin, p, eps, reduction=reduction)
        total = total + weight * loss
    return total
