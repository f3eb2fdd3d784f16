"""Scores of every class at every pixel from queries: sum over q of softmax(class)_c sigmoid(mask) (Mask2Former)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def _resize(x: Tensor, size: Size) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x[None], size, mode="bilinear", align_corners=False)[0]


def _class_scores(logits: Tensor, masks: Tensor) -> Tensor:
    """(Q, K + 1), (Q, H, W) -> (K, H, W); "no object" takes its share and gives none."""
    return torch.einsum("qc,qhw->chw", logits.softmax(-1)[:, :-1], masks.sigmoid())


def semantic_scores(
    logits: Tensor,
    masks: Tensor,
    padded_size: Size,
    image_size: Size,
    output_size: Size | None = None,
    resized: Literal["scores", "masks"] = "scores",
) -> Tensor:
    """Class scores of one picture, at its original size. They are sums of probabilities: no softmax on them.

    Args:
        logits: (Q, K + 1), the last class being "no object". masks: (Q, h, w), logits.
        padded_size: of the network's input, to which the masks are brought. image_size: the part of it that is picture.
        output_size: of the result; None for `image_size`.
        resized: what is brought to the output size, the "scores" as the released configs have it, or the "masks".

    Returns:
        (K, H, W); its argmax over K is the label map.
    """
    height, width = image_size
    masks = _resize(masks, padded_size)[:, :height, :width]
    if resized == "masks":
        return _class_scores(logits, _resize(masks, output_size or image_size))
    return _resize(_class_scores(logits, masks), output_size or image_size)
