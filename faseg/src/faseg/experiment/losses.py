"""Losses of the embedded experiment: the paper's terms and weights, at less cost than `faseg.method.criterion`.

Only the last output is matched, and the others take its pairs; masks of 32 x 32 pixels are compared at every pixel.
Shapes: J outputs, B batch, Q queries, K classes, C channels, P matched pairs, N pixels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from faseg.experiment.scenes import CLASSES, NOTHING, SIDE
from faseg.method.matcher import Matcher, Targets, dice_loss

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT, NO_OBJECT = 2.0, 5.0, 5.0, 0.1
MATCHER = Matcher(SIDE**2)


def scene_loss(outputs: dict[str, Any], labels: Tensor) -> Tensor:
    """Weighted sum over all outputs of the cross-entropy of classes, that of masks, and dice.

    Args:
        outputs: of the network.
        labels: (B, S, S) classes of the pixels.
    """
    features, every = outputs["mask_features"], [*outputs["aux_outputs"], outputs]
    targets = Targets.of_maps(labels, NOTHING)
    costs = MATCHER.costs(
        outputs["pred_logits"], outputs["mask_embeddings"], features, targets, _centres(len(labels), labels.shape[-1])
    )
    pairs = MATCHER.assign(MATCHER.weigh(costs), targets.counts)
    scene = torch.arange(len(pairs)).repeat_interleave(torch.tensor([len(queries) for queries, _ in pairs]))
    query, mask = (torch.cat(indices) for indices in zip(*pairs, strict=True))

    logits = torch.stack([one["pred_logits"] for one in every])  # J B Q K+1
    classes = torch.full(logits.shape[1:3], len(CLASSES))
    classes[scene, query] = targets.labels[scene, mask]
    weight = torch.tensor([1.0] * len(CLASSES) + [NO_OBJECT])
    wanted = classes.expand(len(every), -1, -1)
    each = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weight)  # the mean over outputs of equal weights
    loss = CLASS_WEIGHT * len(every) * each

    embeddings = torch.stack([one["mask_embeddings"] for one in every], 2)[scene, query]  # P J C
    found = embeddings @ features.flatten(2)[scene]  # P J N
    truth = targets.masks.flatten(2)[scene, mask][:, None].expand_as(found)
    crossed = F.binary_cross_entropy_with_logits(found, truth, reduction="none").mean(-1)
    chance = found.sigmoid()
    dice = dice_loss((chance * truth).sum(-1), chance.sum(-1) + truth.sum(-1))
    return loss + (MASK_WEIGHT * crossed + DICE_WEIGHT * dice).sum() / max(1, len(query))


def _centres(batch: int, side: int) -> Tensor:
    """The centres of all pixels as points in [0, 1], (B, N, 2)."""
    places = (torch.arange(side) + 0.5) / side
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    return torch.stack([columns, rows], -1).flatten(0, 1).expand(batch, -1, -1)
