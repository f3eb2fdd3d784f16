"""Whole networks that are raced: Mask2Former of two packages under the same weights, and FASeg."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from faseg.bench.mask2former import mask2former, put_backbone, their_outputs
from faseg.models.faseg import MASK2FORMER, FASeg

THEIRS, BASELINE, FOCUSED = "Mask2Former, transformers", "Mask2Former, this package", "FASeg, 13 layers"
SAME_BACKBONE = "Mask2Former, transformers, our backbone"
CLASSES = 150


def image_of(height: int, width: int) -> Tensor:
    """A made picture, normalised."""
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def whole_networks(blocks: Sequence[int] = (3, 4, 6, 3)) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Normalised picture -> class and mask logits of the last layer; all but FASeg have the same weights.

    `transformers`' stands first, with its own ResNet; then the same with our ResNet inside.

    Args:
        blocks: of the ResNet's stages; those of ResNet-50.
    """
    torch.manual_seed(0)
    backbone = {"kind": "resnet", "blocks": blocks}
    baseline, focused = FASeg(backbone, CLASSES, **MASK2FORMER).eval(), FASeg(backbone, CLASSES).eval()
    theirs, ours_inside = (mask2former(CLASSES, baseline.state_dict(), blocks) for _ in range(2))
    put_backbone(ours_inside, baseline.backbone)
    return {
        THEIRS: partial(their_outputs, theirs),
        SAME_BACKBONE: partial(their_outputs, ours_inside),
        BASELINE: partial(our_outputs, baseline),
        FOCUSED: partial(our_outputs, focused),
    }


def our_outputs(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Class and mask logits of the last layer."""
    found = network(image, masks="last")
    return found["pred_logits"], found["pred_masks"]
