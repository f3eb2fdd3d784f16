"""Layers that store the largest size and use a slice of it (weight entanglement, AutoFormer).

Each takes its input width from the input and its output width as an argument, and keeps nothing between calls. A slice
is a view of the one parameter, so that gradients reach the used part and are zero in the rest of the tensor.

Shapes: D stored width, e used width, q width of queries.
"""

from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn


class ElasticLinear(nn.Linear):
    """y = x W[:out, :in]^T + b[:out]; with `scale` times stored width / out, the bias included."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, scale: bool = False) -> None:
        super().__init__(inputs, outputs, bias)
        self.scale = scale

    def sliced(self, inputs: int, outputs: int) -> tuple[Tensor, Tensor | None]:
        """The weight (outputs, inputs) and the bias (outputs) in use."""
        return self.weight[:outputs, :inputs], None if self.bias is None else self.bias[:outputs]

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """(..., in) -> (..., out); all outputs by default."""
        outputs = self.out_features if outputs is None else outputs
        y = F.linear(x, *self.sliced(x.shape[-1], outputs))
        return y * (self.out_features / outputs) if self.scale else y


class ElasticQkv(ElasticLinear):
    """Queries, keys and values of one linear whose rows are stored interleaved: row 3j is Q row j, 3j + 1 K, 3j + 2 V.

    Args:
        layout: of the bias. "contiguous" is the official code's, an inconsistency with which its weights were trained:
            Q row j has bias j, K row j bias q + j and V row j bias 2 q + j, so that those of K and V change with q.
            "interleaved" follows the rows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        scale: bool = False,
        layout: Literal["contiguous", "interleaved"] = "contiguous",
    ) -> None:
        super().__init__(inputs, outputs, bias, scale)
        self.layout = layout

    def sliced(self, inputs: int, outputs: int) -> tuple[Tensor, Tensor | None]:
        """The weight (3 q, inputs), the rows of Q, K and V one after the other, and the bias (3 q); outputs = 3 q."""
        weight, bias = super().sliced(inputs, outputs)
        if bias is not None and self.layout == "interleaved":
            bias = deinterleave(bias)
        return deinterleave(weight), bias


def deinterleave(rows: Tensor) -> Tensor:
    """(3 q, ...) in the order q0 k0 v0 q1 ... to the order q0 q1 ... k0 k1 ... v0 v1 ..."""
    return rows.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


class ElasticLayerNorm(nn.LayerNorm):
    """Layer norm over the e kept channels alone: weight[:e], bias[:e], eps 1e-5."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., e) -> (..., e)."""
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self.weight[:width], self.bias[:width], self.eps)


class ElasticPatchEmbedding(nn.Module):
    """Patches to tokens in row-major order: the first e output channels of one convolution.

    Args:
        scale: multiplies by D / e.
    """

    def __init__(self, patch_size: int, in_chans: int, embed: int, scale: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed, patch_size, patch_size)
        self.scale = scale

    def forward(self, images: Tensor, embed: int) -> Tensor:
        """(B, channels, H, W) -> (B, patches, e)."""
        weight, bias = self.proj.weight[:embed], cast("Tensor", self.proj.bias)[:embed]
        tokens = F.conv2d(images, weight, bias, self.proj.stride)
        tokens = tokens.flatten(2).transpose(1, 2)
        return tokens * (self.proj.out_channels / embed) if self.scale else tokens
