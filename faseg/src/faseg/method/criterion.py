"""The losses of Mask2Former, which FASeg keeps: classes of all queries, masks of the matched ones at chosen points.

Every output of the decoder is supervised: the last one under the names `loss_ce loss_mask loss_dice`, the earlier ones
with the suffix `_0` (from the raw queries), `_1`, ... Full logit maps of all queries are never made: a map is computed
for each matched query only, and its loss is taken at P points.

Shapes: B batch, Q queries, C channels, K classes, N matched pairs of the batch, H x W the map of 1/4, P points.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from faseg.method.matcher import Draw, Matcher, Targets, dice_loss, sample_points
from faseg.method.prediction_heads import Prediction

Losses = dict[str, Tensor]


class Criterion(nn.Module):
    """Matching, and three losses for each output.

    Args:
        num_classes: K.
        matcher: pairs of queries and masks; its number of points is also the losses'.
        no_object_weight: weight of a query without a mask in the cross-entropy, beside 1.
        oversample: this many times P candidates are drawn for a mask;
        importance: and this share of the P points are the candidates whose logits are nearest to 0.
        weights: of the three losses in the total.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: Matcher | None = None,
        no_object_weight: float = 0.1,
        oversample: float = 3.0,
        importance: float = 0.75,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.matcher = matcher or Matcher()
        self.oversample, self.importance = oversample, importance
        self.weights = dict(weights or {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0})
        self.register_buffer("empty_weight", torch.tensor([1.0] * num_classes + [no_object_weight]))

    def forward(
        self, outputs: Sequence[Prediction], features: Tensor, targets: Targets, draw: Draw | None = None
    ) -> Losses:
        """Unweighted losses by name.

        Args:
            outputs: as the decoder makes them: from the raw queries first, of the last layer last.
            features: (B, C, H, W), which the mask embeddings are multiplied with.
            draw: uniform numbers; by default torch's own on the features' device. The order of draws is the official
                one: the last output's (B times the matcher's, candidates, fresh points), then those of the first, ...
        """
        draw = draw or (lambda shape: torch.rand(shape, device=features.device))
        losses: Losses = {}
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            num_masks = self.count_masks(targets)
            for output, suffix in [(outputs[-1], ""), *((each, f"_{i}") for i, each in enumerate(outputs[:-1]))]:
                output = Prediction(*(part.float() for part in output))
                pairs = self.matcher(*output, features, targets, draw)
                losses[f"loss_ce{suffix}"] = self.class_loss(output.logits, targets, pairs)
                maps, masks = self.paired(output.embeddings, features, targets, pairs)
                points = self.points(maps, draw)
                mask, dice = self.mask_losses(maps, masks, points)
                losses[f"loss_mask{suffix}"], losses[f"loss_dice{suffix}"] = mask / num_masks, dice / num_masks
        return losses

    def weigh(self, losses: Mapping[str, Tensor]) -> Losses:
        """The losses times their weights; the training minimises their sum."""
        return {name: self.weights["_".join(name.split("_")[:2])] * loss for name, loss in losses.items()}

    def count_masks(self, targets: Targets) -> Tensor:
        """Number of masks of the batch, mean over all processes, 1 or more."""
        count = torch.tensor(float(sum(targets.counts)), device=targets.labels.device)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            count /= distributed.get_world_size()
        return count.clamp(min=1)

    def class_loss(self, logits: Tensor, targets: Targets, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Weighted mean of the cross-entropy over all B Q queries; unmatched ones should say no object (K)."""
        wanted = torch.full(logits.shape[:2], logits.shape[2] - 1, device=logits.device)
        for row, labels, (queries, masks) in zip(wanted, targets.labels, pairs, strict=True):
            row[queries.to(row.device)] = labels[masks.to(row.device)]
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), self.empty_weight)

    @staticmethod
    def paired(
        embeddings: Tensor, features: Tensor, targets: Targets, pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Logit maps of the matched queries (N, 1, H, W) and their masks (N, 1, height, width), picture by picture."""
        device = features.device
        chosen = [each[queries.to(device)] for each, (queries, _) in zip(embeddings, pairs, strict=True)]
        maps = torch.cat([each @ one.flatten(1) for each, one in zip(chosen, features, strict=True)])
        masks = torch.cat([each[index.to(device)] for each, (_, index) in zip(targets.masks, pairs, strict=True)])
        return maps.unflatten(1, features.shape[2:])[:, None], masks[:, None]

    @torch.no_grad()
    def points(self, maps: Tensor, draw: Draw) -> Tensor:
        """Places of the loss (N, P, 2): the most uncertain candidates of each map, then fresh ones."""
        pairs, wanted = len(maps), self.matcher.num_points
        uncertain = int(self.importance * wanted)
        candidates = draw((pairs, int(self.oversample * wanted), 2))
        fresh = draw((pairs, wanted - uncertain, 2))
        nearest = (-sample_points(maps, candidates)[:, 0].abs()).topk(uncertain, dim=1).indices
        return torch.cat([candidates.gather(1, nearest[..., None].expand(-1, -1, 2)), fresh], dim=1)

    @staticmethod
    def mask_losses(maps: Tensor, masks: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the pairs of the binary cross-entropy (mean over points) and of the dice loss."""
        logits, wanted = sample_points(maps, points)[:, 0], sample_points(masks, points)[:, 0]
        cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
        chance = logits.sigmoid()
        return cross_entropy.sum(), dice_loss((chance * wanted).sum(1), chance.sum(1) + wanted.sum(1)).sum()
