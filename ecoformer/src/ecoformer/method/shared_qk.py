"""Softmax attention whose queries and keys are the same vectors: what EcoFormer approximates, its natural upper bound.

Shapes: B batch, H heads, N tokens, D dim = H C, C head width.
"""

from typing import Any

from torch import Tensor, nn

from ecoformer.method.softmax_attention import check_heads, join_heads, softmax_attention, split_heads


class SharedQKAttention(nn.Module):
    """softmax(qk qk^T / sqrt C) v with qk not normalised (`msa_share_qk`). Keys: to_qk, to_v, proj.

    Args:
        dim, num_heads: D and H. qkv_bias: bias of `to_qk` and `to_v`. proj_drop: dropout behind `proj`. backend: see
            `ecoformer.method.softmax_attention.softmax_attention`.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, proj_drop: float = 0.0, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.head_dim, self.num_heads, self.backend = check_heads(dim, num_heads), num_heads, backend
        self.to_qk = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, size: Any = None, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D); the grid `size` plays no role here."""
        qk, v = (split_heads(layer(x), self.num_heads) for layer in (self.to_qk, self.to_v))
        return self.proj_drop(self.proj(join_heads(softmax_attention(qk, qk, v, mask, causal, self.backend))))
