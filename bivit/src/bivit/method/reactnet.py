"""ReActNet's two layers (Liu et al., ECCV 2020, from memory; their places in a transformer are this project's).

RSign stands before every binary linear, RPReLU in the place of GELU.

Shapes: C channels, the last dimension of every input.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bivit.method.sign import Gradient, Zero, sign


class RSign(nn.Module):
    """`sign(x - threshold)` with a learned threshold per channel, 0 at the start; Bi-Real's gradient as in ReActNet."""

    def __init__(self, channels: int, gradient: Gradient = "bireal", zero: Zero = "ternary") -> None:
        super().__init__()
        self.gradient, self.zero = gradient, zero
        self.threshold = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> signs (..., C)."""
        return sign(x - self.threshold, self.gradient, self.zero)


class RPReLU(nn.Module):
    """PReLU with a slope per channel (0.25 at the start) between two learned shifts (0 at the start)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C): `f(x - shift_in) + shift_out`, f(z) = z above 0, slope * z below."""
        z = x - self.shift_in
        return F.relu(z) - self.slope * F.relu(-z) + self.shift_out
