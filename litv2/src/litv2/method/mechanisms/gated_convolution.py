"""Two mixers without attention: large-kernel attention (VAN) and recursive gated convolution (HorNet).

Shapes: B batch, H x W tokens, D channels; the convolutions see (B, D, H, W) as a view of (B, H, W, D).
"""

import torch
from torch import Tensor, nn

from litv2.method.token_grid import on_grid
from paperkit.errors import UserError


class _SpatialGate(nn.Module):
    """u * conv1(conv_spatial(conv0(u))): a 21 x 21 receptive field from depthwise 5x5 and dilated depthwise 7x7."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, u: Tensor) -> Tensor:
        return u * self.conv1(self.conv_spatial(self.conv0(u)))


class LargeKernelAttention(nn.Module):
    """VAN's attention with its own residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.activation = nn.GELU()
        self.spatial_gating_unit = _SpatialGate(dim)
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) with H and W, or (B, H, W, D) -> the same shape."""
        return on_grid(self._grid, x, H, W)

    def _grid(self, x: Tensor) -> Tensor:
        u = self.activation(self.proj_1(x.permute(0, 3, 1, 2)))
        return x + self.proj_2(self.spatial_gating_unit(u)).permute(0, 2, 3, 1)


class GatedConvolution(nn.Module):
    """HorNet's gnconv: `order` rounds of gating over channel groups that double in width.

    Args:
        order: rounds; D must be a multiple of 2 ** (order - 1). The benchmark uses 4.
        scale: factor on the depthwise convolution; the benchmark uses 1 / 3.
    """

    def __init__(self, dim: int, order: int = 4, scale: float = 1 / 3) -> None:
        super().__init__()
        if order < 1 or dim % 2 ** (order - 1):
            raise UserError(f"dim {dim} is not a multiple of 2 ** (order - 1) for order {order}")
        self.scale = scale
        self.dims = [dim // 2 ** (order - 1 - i) for i in range(order)]
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        self.dwconv = nn.Conv2d(sum(self.dims), sum(self.dims), 7, padding=3, groups=sum(self.dims))
        self.pws = nn.ModuleList(nn.Conv2d(a, 2 * a, 1) for a in self.dims[:-1])
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) with H and W, or (B, H, W, D) -> the same shape."""
        return on_grid(self._grid, x, H, W)

    def _grid(self, x: Tensor) -> Tensor:
        first, rest = torch.split(self.proj_in(x.permute(0, 3, 1, 2)), [self.dims[0], sum(self.dims)], dim=1)
        gates = torch.split(self.dwconv(rest) * self.scale, self.dims, dim=1)
        mixed = first * gates[0]
        for widen, gate in zip(self.pws, gates[1:], strict=True):
            mixed = widen(mixed) * gate
        return self.proj_out(mixed).permute(0, 2, 3, 1)
