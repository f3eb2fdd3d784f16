"""Attention over the whole grid: MSA, MSA with relative position bias (LITv1), SRA (PVT), Linformer.

Shapes: B batch, H x W tokens, N = H * W, D channels, n heads, d = D / n, K keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litv2.method.token_grid import on_grid
from paperkit.errors import UserError


def split_projections(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts * n * d) -> `parts` tensors (B, n, N, d); the parts lie along the last axis, heads before d."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Tensor) -> Tensor:
    """(B, n, N, d) -> (B, N, n * d)."""
    return x.transpose(1, 2).flatten(2)


class MSA(nn.Module):
    """Multi-head self-attention over all tokens: 4 N D^2 + 2 N^2 D multiply-adds.

    Args:
        explicit: form the N x N matrix and its softmax instead of calling fused attention (same result; for clocks).
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, explicit: bool = False) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.fused_attn = num_heads, not explicit
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) or (B, H, W, D) -> the same shape."""
        tokens = x.flatten(1, -2)
        q, k, v = split_projections(self.qkv(tokens), 3, self.num_heads)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v
        return self.proj(merge_heads(out)).view_as(x)


def relative_position_index(height: int, width: int) -> Tensor:
    """(N, N) int64: the row of the bias table for each pair of positions of a `height` x `width` grid."""
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
    dy, dx = places[:, :, None] - places[:, None, :]
    return (dy + height - 1) * (2 * width - 1) + dx + width - 1


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Bicubic resize of a table (S^2, n) of a square grid to `rows` rows, as the authors' dense code does.

    Raises:
        UserError: one of the two tables does not come from a square grid.
    """
    old, new = round(table.shape[0] ** 0.5), round(rows**0.5)
    if old * old != table.shape[0] or new * new != rows:
        raise UserError(f"a position table of {table.shape[0]} rows cannot be resized to {rows}: not square grids")
    image = table.T.reshape(1, -1, old, old)
    return F.interpolate(image, size=(new, new), mode="bicubic").flatten(2)[0].T.contiguous()


class RelPosAttention(nn.Module):
    """MSA with a learned bias for every relative position of the whole grid (LITv1): bound to one grid size.

    Args:
        grid: (H, W).
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.grid = num_heads, grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1), num_heads))
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_position_index(*grid))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) or (B, H, W, D) with N the tokens of `grid` -> the same shape."""
        tokens = x.flatten(1, -2)
        if tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise UserError(
                f"{tokens.shape[1]} tokens where relative positions are learned for {self.grid[0]} x {self.grid[1]}; "
                "build the model with that img_size"
            )
        q, k, v = split_projections(self.qkv(tokens), 3, self.num_heads)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(merge_heads(out)).view_as(x)


class SpatialReductionAttention(nn.Module):
    """SRA (PVT): keys and values from a map reduced by an R x R stride-R convolution and a LayerNorm.

    (3 + 2 / R^2) N D^2 + 2 N^2 D / R^2 multiply-adds, the convolution not counted in the paper's formula.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int = 2, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) with H and W, or (B, H, W, D) -> the same shape."""
        return on_grid(self._grid, x, H, W)

    def _grid(self, x: Tensor) -> Tensor:
        (q,) = split_projections(self.q(x.flatten(1, 2)), 1, self.num_heads)
        reduced = x
        if self.sr_ratio > 1:
            reduced = self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        k, v = split_projections(self.kv(reduced.flatten(1, 2)), 2, self.num_heads)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v))).view_as(x)


class Linformer(nn.Module):
    """Keys and values projected along the token axis to K = `features` rows, one projection for all heads.

    Args:
        tokens: N, fixed by the projection's shape.
        features: K.
    """

    def __init__(self, dim: int, num_heads: int, tokens: int, features: int = 128, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj_k = nn.Parameter(torch.randn(tokens, features) * tokens**-0.5)
        self.proj_v = nn.Parameter(torch.randn(tokens, features) * tokens**-0.5)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) or (B, H, W, D) -> the same shape."""
        tokens = x.flatten(1, -2)
        if tokens.shape[1] != self.proj_k.shape[0]:
            raise UserError(f"{tokens.shape[1]} tokens where the projection was built for {self.proj_k.shape[0]}")
        (q,) = split_projections(self.query(tokens), 1, self.num_heads)
        k, v = split_projections(self.kv(tokens), 2, self.num_heads)
        k, v = self.proj_k.T @ k, self.proj_v.T @ v
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v))).view_as(x)
