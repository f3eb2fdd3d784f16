"""Learned rounding of weights (section 4 of the method; AdaRound, Nagel et al., ICML 2020, as BRECQ has it).

Every weight is rounded down or up; `alpha` says which, softly while it is learned and hard afterwards.
"""

import torch
from torch import Tensor, nn

from ptq4dm.method.quant_layer import QuantLayer
from ptq4dm.method.quantizer import UniformAffineQuantizer
from ptq4dm.method.range_search import Grid, bounds

GAMMA, ZETA = -0.1, 1.1


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """`h(alpha)`, in [0, 1] and equal to its ends for large |alpha|."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def initial_alpha(scaled: Tensor) -> Tensor:
    """The alpha whose `h` is what is left of `weight / delta` above its floor."""
    rest = scaled - scaled.floor()
    return -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)


def rounding_regulariser(alpha: Tensor, b: float) -> Tensor:
    """`sum(1 - |2 h - 1| ** b)`: 0 where every weight has decided."""
    return (1 - (2 * rectified_sigmoid(alpha) - 1).abs().pow(b)).sum()


def temperature(step: int, steps: int, warmup: float = 0.2, start: float = 20.0, end: float = 2.0) -> float:
    """The exponent b of the regulariser: `start` until `warmup * steps`, then linear to `end` at `steps`.

    Args:
        step: counted from 1 by the reconstruction.
    """
    begin = warmup * steps
    if step < begin:
        return start
    return end + (start - end) * max(0.0, 1 - (step - begin) / (steps - begin))


class AdaRoundQuantizer(nn.Module):
    """Takes the place of a weight's quantiser, on the same grid.

    Args:
        quantizer: with its range.
        weight: (O, I, ...), the float weight.
    """

    delta: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: UniformAffineQuantizer, weight: Tensor) -> None:
        super().__init__()
        self.bits, self.channel_wise, self.name = quantizer.bits, quantizer.channel_wise, quantizer.name
        self.grid: Grid = quantizer.grid
        self.soft = False
        self.register_buffer("delta", quantizer.delta.detach().clone())
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())
        self.alpha = nn.Parameter(initial_alpha(weight.detach() / self.delta))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, channel_wise={self.channel_wise}, soft={self.soft}"

    def h(self) -> Tensor:
        """How far each weight is rounded up, 0 to 1."""
        return rectified_sigmoid(self.alpha)

    def _codes(self, weight: Tensor) -> Tensor:
        up = self.h() if self.soft else (self.alpha >= 0).to(weight.dtype)
        down = (weight.detach() / self.delta).floor()
        return (down + up + self.zero_point).clamp(*bounds(self.bits, self.grid))

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """The whole numbers that stand for the weight, in a float tensor of its shape (not whole while `soft`)."""
        return self._codes(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid, softly between two steps of it while `soft`; only `alpha` has a gradient."""
        return (self._codes(weight) - self.zero_point) * self.delta


def learn_rounding(layer: QuantLayer) -> list[AdaRoundQuantizer]:
    """Gives a layer with known weight ranges such quantisers, if it has none yet, and returns them."""
    found = []
    for (name, quantizer), piece in zip(layer.weight_quantizers, layer.parts(layer.weight, 1), strict=True):
        if isinstance(quantizer, UniformAffineQuantizer):
            quantizer = AdaRoundQuantizer(quantizer, piece)
            setattr(layer, name, quantizer)
        assert isinstance(quantizer, AdaRoundQuantizer)
        found.append(quantizer)
    return found
