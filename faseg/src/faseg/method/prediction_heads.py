"""Class and mask of every query, and where its masks let the next layer look (Mask2Former's heads).

A mask is the product of a query's mask embedding with the mask features F. Resizing F once to each level's size and
then multiplying gives the level's masks without ever making full ones: bilinear resizing and the product commute.

Shapes: B batch, Q queries, K classes, C channels, M channels of F, N positions of a level.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prediction(NamedTuple):
    """Predictions of one layer: logits (B, Q, K + 1), the last class being "no object", embeddings (B, Q, M)."""

    logits: Tensor
    embeddings: Tensor

    def masks(self, mask_features: Tensor) -> Tensor:
        """Mask logits: (B, M, H, W) -> (B, Q, H, W)."""
        return (self.embeddings @ mask_features.flatten(2)).unflatten(2, mask_features.shape[-2:])


class MaskEmbedding(nn.Module):
    """The MLP of a query's mask embedding: (..., C) -> (..., M)."""

    def __init__(self, channels: int, mask_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(channels, n) for n in (channels, channels, mask_channels))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class PredictionHeads(nn.Module):
    """The heads that the raw queries and all layers share.

    `Decoder` inherits them, since the released files name their parameters beside the decoder's own.

    Args:
        channels: C. mask_channels: M. classes: K.
    """

    def __init__(self, channels: int, mask_channels: int, classes: int) -> None:
        super().__init__()
        self.decoder_norm = nn.LayerNorm(channels)
        self.class_embed = nn.Linear(channels, classes + 1)
        self.mask_embed = MaskEmbedding(channels, mask_channels)

    def predict(self, x: Tensor) -> Prediction:
        """(B, Q, C) -> classes and mask embeddings."""
        normed = self.decoder_norm(x)
        return Prediction(self.class_embed(normed), self.mask_embed(normed))

    @torch.no_grad()
    def level_logits(self, x: Tensor, level_features: Tensor) -> Tensor:
        """Mask logits on a level, without gradient: (B, Q, C), F resized to the level (B, M, N) -> (B, Q, N)."""
        return self.mask_embed(self.decoder_norm(x)) @ level_features


def resized_features(mask_features: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """F at a level's size by bilinear resizing, without gradient: (B, M, H, W) -> (B, M, N).

    At an even ratio that is the mean of the two by two pixels around each cell's centre; torch's own copies F first.
    """
    features = mask_features.detach()
    if not torch.compiler.is_compiling():  # whose sizes may be free
        ratio = features.shape[-1] // size[1]
        if ratio % 2 == 0 and ratio and tuple(features.shape[-2:]) == (ratio * size[0], ratio * size[1]):
            first, second = ratio // 2 - 1, ratio // 2
            rows = features[..., first::ratio, :] + features[..., second::ratio, :]
            return ((rows[..., first::ratio] + rows[..., second::ratio]) / 4).flatten(2)
    return F.interpolate(features, size, mode="bilinear", align_corners=False).flatten(2)


def forbidden(logits: Tensor, threshold: float) -> Tensor:
    """Where a query must not look: its mask's probability is below `threshold`. Any shape, to bool.

    FASeg's threshold is 0.15, Mask2Former's 0.5; the logits are compared with its logit.
    """
    return logits < (math.log(threshold / (1 - threshold)) if threshold > 0 else -math.inf)
