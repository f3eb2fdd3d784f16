"""Hungarian matching of queries with the classes that a picture shows (the rule of DETR and Mask2Former).

Every output of the decoder is matched anew, without gradient. Masks are compared at P random points, the same for all
queries and classes of a picture; the mask logits of the queries are made at those points alone, from the mask
embeddings and the features sampled there (sampling is linear, so that this is the logit map's value at the point).

Shapes: B batch, Q queries, C channels, K classes, T masks of the picture that has most, H x W the map of 1/4, P points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

Draw = Callable[[tuple[int, ...]], Tensor]
"""Uniform numbers in [0, 1) of a shape."""


@dataclass(frozen=True)
class Targets:
    """What the pictures of a batch show: one binary mask for each class present.

    labels: (B, T) classes; masks: (B, T, height, width) of 0 and 1 at the padded input's size; counts: how many of the
    T each picture has, the others are padding.
    """

    labels: Tensor
    masks: Tensor
    counts: tuple[int, ...]

    @classmethod
    def stack(cls, labels: Sequence[Tensor], masks: Sequence[Tensor]) -> "Targets":
        """From one (T_b,) and one (T_b, height, width) tensor a picture, all of one size."""
        counts = tuple(len(each) for each in labels)
        return cls(
            pad_sequence(list(labels), batch_first=True), pad_sequence(list(masks), batch_first=True).float(), counts
        )

    @classmethod
    def of_maps(cls, maps: Tensor, ignore: int = 255) -> "Targets":
        """From label maps (B, height, width); pixels of the label `ignore` belong to no mask."""
        present = [each.unique() for each in maps]
        labels = [each[each != ignore].long() for each in present]
        return cls.stack(labels, [one == each[:, None, None] for one, each in zip(maps, labels, strict=True)])


class Costs(NamedTuple):
    """Costs of giving a mask to a query, unweighted; each (B, Q, T), columns of padding without a meaning."""

    classes: Tensor
    masks: Tensor
    dice: Tensor


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of (B, C, H, W) maps at (B, P, 2) places (x, y) in [0, 1], 0 outside: (B, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def dice_loss(overlap: Tensor, sizes: Tensor) -> Tensor:
    """1 - (2 overlap + 1) / (sizes + 1), `sizes` the sum of both masks' sizes."""
    return 1 - (2 * overlap + 1) / (sizes + 1)


@dataclass(frozen=True)
class Matcher:
    """One query for each mask of a picture, so that the sum of the costs is smallest.

    Args:
        num_points: P; 112 x 112 in the released recipes.
        cost_class, cost_mask, cost_dice: weights of the three costs.
    """

    num_points: int = 12544
    cost_class: float = 2.0
    cost_mask: float = 5.0
    cost_dice: float = 5.0

    @torch.no_grad()
    def costs(self, logits: Tensor, embeddings: Tensor, features: Tensor, targets: Targets, points: Tensor) -> Costs:
        """Costs of all queries and masks of a batch.

        Args:
            logits: (B, Q, K + 1) of the classes, the last for no object.
            embeddings: (B, Q, C) of the masks; the mask logits are their products with the features.
            features: (B, C, H, W).
            points: (B, P, 2), for each picture its own.
        """
        labels_bqt = targets.labels[:, None].expand(-1, logits.shape[1], -1)
        mask_bqp = embeddings @ sample_points(features, points)
        target_btp = sample_points(targets.masks, points)
        target_bpt, chance_bqp = target_btp.transpose(1, 2), mask_bqp.sigmoid()
        # BCE(m, t) = softplus(m) - m t: the sum over points of all pairs is one product of matrices.
        cross_entropy = (F.softplus(mask_bqp).sum(2, keepdim=True) - mask_bqp @ target_bpt) / points.shape[1]
        sizes = chance_bqp.sum(2)[:, :, None] + target_btp.sum(2)[:, None]
        return Costs(-logits.softmax(2).gather(2, labels_bqt), cross_entropy, dice_loss(chance_bqp @ target_bpt, sizes))

    def weigh(self, costs: Costs) -> Tensor:
        """The weighted sum (B, Q, T)."""
        return self.cost_class * costs.classes + self.cost_mask * costs.masks + self.cost_dice * costs.dice

    def assign(self, cost: Tensor, counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """The cheapest pairs of each picture, from weighted costs (B, Q, T): (queries in rising order, their masks).

        A cost that is not a number counts as a very high one: the losses of such a batch are not numbers either, so
        that the training's own guard (or the scaler of float16, which skips the step) sees them, and not the solver.
        """
        finite = torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
        pairs = [linear_sum_assignment(each[:, :count]) for each, count in zip(finite, counts, strict=True)]
        return [(torch.as_tensor(queries), torch.as_tensor(masks)) for queries, masks in pairs]

    def draw(self, batch: int, draw: Draw) -> Tensor:
        """The points of a batch (B, P, 2), drawn picture by picture."""
        return torch.cat([draw((1, self.num_points, 2)) for _ in range(batch)])

    def __call__(
        self, logits: Tensor, embeddings: Tensor, features: Tensor, targets: Targets, draw: Draw
    ) -> list[tuple[Tensor, Tensor]]:
        """Draws the points and pairs queries with masks: for each picture (queries, masks)."""
        points = self.draw(len(logits), draw)
        return self.assign(self.weigh(self.costs(logits, embeddings, features, targets, points)), targets.counts)
