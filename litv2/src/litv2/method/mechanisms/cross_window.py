"""Cross-shaped window attention (CSWin): half of the channels attends in vertical stripes, half in horizontal ones.

Shapes: B batch, H x W tokens, D channels, C = D / 2 channels of a half, n heads of a half, G stripes of all images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litv2.method.mechanisms.global_attention import merge_heads
from litv2.method.token_grid import on_grid
from paperkit.errors import UserError


class _Stripes(nn.Module):
    """Holds the depthwise convolution of the values of one half (locally-enhanced position encoding)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.get_v = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, qkv: Tensor, height: int, width: int) -> Tensor:
        """(3, B, H, W, C) cut into stripes of height x width -> (B, H, W, C)."""
        _, batch, rows, columns, channels = qkv.shape
        cut = qkv.view(3, batch, rows // height, height, columns // width, width, channels).transpose(3, 4)
        q, k, v = cut.reshape(3, -1, height * width, channels)
        lepe = self.get_v(v.view(-1, height, width, channels).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        heads = [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v)]
        out = merge_heads(F.scaled_dot_product_attention(*heads)) + lepe
        out = out.view(batch, rows // height, columns // width, height, width, channels).transpose(2, 3)
        return out.reshape(batch, rows, columns, channels)


class CrossWindowAttention(nn.Module):
    """Vertical stripes (H x split) on the first half of the channels, horizontal ones (split x W) on the second.

    Args:
        split_size: stripe width in tokens; must divide H and W. The benchmark uses 7.
    """

    def __init__(self, dim: int, num_heads: int, split_size: int = 7, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads % 2 or dim % num_heads:
            raise UserError(f"dim {dim} and num_heads {num_heads}: the heads must be even and divide dim")
        self.split_size = split_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attns = nn.ModuleList(_Stripes(dim // 2, num_heads // 2) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) with H and W, or (B, H, W, D) -> the same shape."""
        return on_grid(self._grid, x, H, W)

    def _grid(self, x: Tensor) -> Tensor:
        _, height, width, dim = x.shape
        split = self.split_size
        if height % split or width % split:
            raise UserError(f"split_size {split} does not divide the grid of {height} x {width}")
        qkv = self.qkv(x).unflatten(-1, (3, dim)).permute(3, 0, 1, 2, 4)
        vertical = self.attns[0](qkv[..., : dim // 2], height, split)
        horizontal = self.attns[1](qkv[..., dim // 2 :], split, width)
        return self.proj(torch.cat((vertical, horizontal), dim=-1))
