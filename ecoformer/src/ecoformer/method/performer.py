"""The Performer baseline: softmax attention by positive random features (FAVOR+, Choromanski et al., ICLR 2021).

    phi(x) = F^(-1/2) (exp(P C^(-1/4) x - |x|^2 / (2 sqrt C) - stabiliser) + 1e-4)

Shapes: B batch, H heads, N tokens, D dim = H C, C head width, F features.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.method.kernel_hash import full_precision
from ecoformer.method.softmax_attention import check_heads, join_heads, split_heads

EPS = 1e-4


def feature_count(head_dim: int) -> int:
    """F = int(C ln C), as released: 110 for 32, 266 for 64."""
    return max(1, int(head_dim * math.log(head_dim)))


def orthogonal_features(features: int, head_dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Gaussian rows (F, C), orthogonal within each block of C; a row's length is that of a Gaussian vector."""
    blocks = [
        torch.linalg.qr(torch.randn(head_dim, head_dim, generator=generator)).Q.T
        for _ in range(math.ceil(features / head_dim))
    ]
    lengths = torch.randn(features, head_dim, generator=generator).norm(dim=1)
    return lengths[:, None] * torch.cat(blocks)[:features]


def positive_features(x: Tensor, projection: Tensor, query: bool, mask: Tensor | None = None) -> Tensor:
    """phi(x): (B, H, N, C) -> (B, H, N, F). The stabiliser is a row's largest value for queries, the largest of all
    for keys (those of padding aside)."""
    width = x.shape[-1]
    dots = (x * width**-0.25) @ projection.mT.to(x.dtype)
    lengths = x.square().sum(-1, keepdim=True) / (2 * width**0.5)
    if query:
        stabiliser = dots.amax(-1, keepdim=True)
    else:
        seen = dots if mask is None else dots.masked_fill(~mask[:, None, :, None], -torch.inf)
        stabiliser = seen.amax()
    phi = (torch.exp(dots - lengths - stabiliser) + EPS) / projection.shape[0] ** 0.5
    return phi if query or mask is None else phi * mask[:, None, :, None]


def favor_attention(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, mask: Tensor | None = None) -> Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) . sum_j phi(k_j)), in float32: (B, H, N, C) -> (B, H, N, C)."""
    with full_precision(q):
        kind = v.dtype
        q, k, v = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, k, v))
        queries, keys = positive_features(q, projection, True), positive_features(k, projection, False, mask)
        normaliser = queries @ keys.sum(-2)[..., None]
        return (queries @ (keys.mT @ v) / normaliser).to(kind)


class _Features(nn.Module):
    """Holds the projection under the released key `fast_attention.projection_matrix`."""

    projection_matrix: Tensor

    def __init__(self, features: int, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("projection_matrix", orthogonal_features(features, head_dim))


class PerformerAttention(nn.Module):
    """FAVOR+ with q, k and v of their own. Keys: qkv, proj, fast_attention.projection_matrix.

    Args:
        dim, num_heads: D and H. features: F; int(C ln C) without.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, proj_drop: float = 0.0, features: int | None = None
    ) -> None:
        super().__init__()
        self.head_dim, self.num_heads = check_heads(dim, num_heads), num_heads
        self.fast_attention = _Features(features or feature_count(self.head_dim), self.head_dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, size: Any = None, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); the grid `size` plays no role here."""
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, -1))
        return self.proj_drop(
            self.proj(join_heads(favor_attention(q, k, v, self.fast_attention.projection_matrix, mask)))
        )
