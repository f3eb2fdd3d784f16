"""Mean IoU of a trained network's outputs on scenes.

Shapes: N scenes, Q queries, K classes, S side of the picture.
"""

from typing import Any

import torch
from torch import Tensor, nn

from faseg.experiment.scenes import CLASSES, NOTHING, Scenes

SURE = 0.5
"""A pixel belongs to no class unless the score of one reaches it."""


def label_scores(output: dict[str, Tensor]) -> Tensor:
    """(N, K, S, S): for each class the sum over queries of its probability times the mask's (section 4)."""
    likely = output["pred_logits"].softmax(-1)[..., :-1]
    return torch.einsum("nqk,nqhw->nkhw", likely, output["pred_masks"].sigmoid())


def labels_of(output: dict[str, Tensor]) -> Tensor:
    """(N, S, S) labels of one output; `NOTHING` where no score reaches `SURE`.

    The argmax alone would give a digit's class to every pixel: scenes, unlike ADE20K, have pixels of no class.
    """
    score, label = label_scores(output).max(1)
    return label.where(score >= SURE, NOTHING)


def mean_iou(found: Tensor, labels: Tensor) -> float:
    """IoU of each class over all scenes together, their mean in %; digits seen on empty ground lower it."""
    ious = []
    for label in range(len(CLASSES)):
        ours, theirs = found == label, labels == label
        ious.append((ours & theirs).sum() / (ours | theirs).sum().clamp(min=1))
    return 100 * float(torch.stack(ious).mean())


@torch.no_grad()
def output_ious(network: nn.Module, scenes: Scenes) -> list[float]:
    """Mean IoU of every output, from that of the raw queries to the last."""
    images, labels = scenes
    outputs: dict[str, Any] = network.eval()(images, masks="all")
    return [mean_iou(labels_of(output), labels) for output in [*outputs["aux_outputs"], outputs]]
