"""A convolution or linear layer that quantises its input, then its weight (section 2 of the method).

Shapes: O outputs, I inputs, B batch.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptq4dm.method.quantizer import UniformAffineQuantizer

Quantised = nn.Conv2d | nn.Linear


class QuantLayer(nn.Module):
    """`out = layer(act_quantizer(x), weight_quantizer(weight), bias)`; the bias stays float.

    It takes over the layer's own parameters, so keys of a state dict keep their names, and offers the attributes that
    other code reads of a layer. The float weight is never changed; `weights_quantized` and `inputs_quantized` say
    what a forward pass quantises, both off at first.

    Args:
        layer: `nn.Conv2d` or `nn.Linear`.
        weight_quantizer, act_quantizer: their ranges may still be unknown.
        split: of Q-Diffusion's shortcut split: the first `split` input channels, and the rest, which comes over a skip
            connection, are quantised each by quantisers of its own (`weight_quantizer_0`, `act_quantizer_0`: the rest).
    """

    def __init__(
        self,
        layer: Quantised,
        weight_quantizer: nn.Module,
        act_quantizer: UniformAffineQuantizer,
        split: tuple[int, nn.Module, UniformAffineQuantizer] | None = None,
    ) -> None:
        super().__init__()
        self.is_conv = isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.Conv2d):
            self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
            self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
            self.dilation, self.groups, self.padding_mode = layer.dilation, layer.groups, layer.padding_mode
            self._around = layer._reversed_padding_repeated_twice
        else:
            self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer, self.act_quantizer = weight_quantizer, act_quantizer
        self.split: int | None = None
        if split is not None:
            self.split, self.weight_quantizer_0, self.act_quantizer_0 = split
        self.weights_quantized = self.inputs_quantized = False
        self.train(layer.training)

    @property
    def bits(self) -> tuple[int, int]:
        """Of the weight and of the input."""
        return cast(int, self.weight_quantizer.bits), self.act_quantizer.bits

    @property
    def weight_quantizers(self) -> list[tuple[str, nn.Module]]:
        """By name: one, or with a shortcut split two."""
        names = ["weight_quantizer"] if self.split is None else ["weight_quantizer", "weight_quantizer_0"]
        return [(name, getattr(self, name)) for name in names]

    @property
    def act_quantizers(self) -> list[tuple[str, UniformAffineQuantizer]]:
        """By name: one, or with a shortcut split two."""
        names = ["act_quantizer"] if self.split is None else ["act_quantizer", "act_quantizer_0"]
        return [(name, getattr(self, name)) for name in names]

    def parts(self, x: Tensor, dim: int) -> list[Tensor]:
        """The input channels of `x`, cut where the shortcut split cuts them."""
        return [x] if self.split is None else list(x.split([self.split, x.shape[dim] - self.split], dim))

    def quantized_weight(self) -> Tensor:
        """The weight on its grid, (O, I, ...) as the float one."""
        pieces = self.parts(self.weight, 1)
        quantised = [q(part) for (_, q), part in zip(self.weight_quantizers, pieces, strict=True)]
        return quantised[0] if self.split is None else torch.cat(quantised, 1)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input on its grid, same shape."""
        dim = 1 if self.is_conv else -1
        quantised = [q(part) for (_, q), part in zip(self.act_quantizers, self.parts(x, dim), strict=True)]
        return quantised[0] if self.split is None else torch.cat(quantised, dim)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives: (B, I, H, W) -> (B, O, H', W'), or (..., I) -> (..., O)."""
        if self.inputs_quantized:
            x = self.quantized_input(x)
        weight = self.quantized_weight() if self.weights_quantized else self.weight
        if not self.is_conv:
            return F.linear(x, weight, self.bias)
        if self.padding_mode == "zeros":
            return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        x = F.pad(x, self._around, mode=self.padding_mode)
        return F.conv2d(x, weight, self.bias, self.stride, 0, self.dilation, self.groups)
