"""Scores of every class at every pixel from queries: sum over q of softmax(class)_c sigmoid(mask) (Mask2Former).

The masks of all queries at the picture's size are the largest tensor of inference (0.8 GB for 1024 x 2048): they are
made some rows at a time.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from faseg.method.attention import SCRATCH

Size = tuple[int, int]


def _resize(x: Tensor, size: Size) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x[None], size, mode="bilinear", align_corners=False)[0]


def _class_scores(logits: Tensor, masks: Tensor) -> Tensor:
    """(Q, K + 1), (Q, H, W) -> (K, H, W); "no object" takes its share and gives none."""
    return torch.einsum("qc,qhw->chw", logits.softmax(-1)[:, :-1], masks.sigmoid())


def _class_scores_of_small(logits: Tensor, masks: Tensor, padded_size: Size, image_size: Size) -> Tensor:
    """`_class_scores` of masks resized to `padded_size` and cut to `image_size`: (Q, K + 1), (Q, h, w) -> (K, H, W)."""
    height, width = image_size
    wide = _resize(masks, (masks.shape[1], padded_size[1]))[..., :width]
    place = (torch.arange(height, device=masks.device) + 0.5) * (masks.shape[1] / padded_size[0]) - 0.5
    place = place.clamp(min=0)
    above = place.long()
    below, share = (above + 1).clamp(max=masks.shape[1] - 1), (place - above)[:, None].to(masks.dtype)
    classes = logits.softmax(-1)[:, :-1].T
    if torch.compiler.is_compiling():  # an exported program has free sizes: how many rows fit is not known
        bands = [slice(None)]
    else:
        rows = max(SCRATCH.get(masks.device.type, SCRATCH["cuda"]) // (len(masks) * width), 1)
        bands = [slice(first, first + rows) for first in range(0, height, rows)]
    scores = masks.new_empty(classes.shape[0], height, width)
    for band in bands:
        probabilities = torch.lerp(wide[:, above[band]], wide[:, below[band]], share[band]).sigmoid_()
        scores[:, band] = (classes @ probabilities.flatten(1)).unflatten(1, (-1, width))
    return scores


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
    output_size = output_size or image_size
    if resized == "scores":
        return _resize(_class_scores_of_small(logits, masks, padded_size, image_size), output_size)
    height, width = image_size
    return _class_scores(logits, _resize(_resize(masks, padded_size)[:, :height, :width], output_size))
