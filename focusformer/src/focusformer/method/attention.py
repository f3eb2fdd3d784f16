"""Self-attention of the supernet, in AutoFormer's released form.

Shapes: B batch, N tokens, e embedding width, h heads, C head width, q = h C.
"""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from focusformer.method.elastic import ElasticLinear, ElasticQkv
from focusformer.method.relative_position import RelativePosition2d, official_attention, separable_attention

Relative = Literal["separable", "official"]


class ElasticAttention(nn.Module):
    """Attention over the first h heads, with relative position on keys and values where M is given.

    Args:
        embed: D. head_dim: C, the same for every h, with `change_qkv`.
        table_width: stored C of the tables of relative position. max_relative_position: M, or None for no such tables.
        change_qkv: q = C h. Without it q stays D, heads are D // h wide, and the scale is (e // h)^-0.5, which is not
            that of the head width: as released.
        scale: multiplies the merged heads by D / q.
        relative: "separable" or "official", with the same results but for rounding; the former is plain fused attention
            where there is no relative position.
    """

    def __init__(
        self,
        embed: int,
        head_dim: int,
        table_width: int,
        max_relative_position: int | None,
        *,
        change_qkv: bool = True,
        qkv_bias: bool = True,
        layout: Literal["contiguous", "interleaved"] = "contiguous",
        scale: bool = False,
        relative: Relative = "separable",
    ) -> None:
        super().__init__()
        self.embed, self.head_dim, self.change_qkv = embed, head_dim, change_qkv
        self.scale, self.relative = scale, relative
        if change_qkv:
            self.qkv: ElasticLinear = ElasticQkv(embed, 3 * embed, qkv_bias, layout=layout)
        else:
            self.qkv = ElasticLinear(embed, 3 * embed, qkv_bias)
        self.rel_pos_embed_k = self.rel_pos_embed_v = None
        if max_relative_position is not None:
            self.rel_pos_embed_k = RelativePosition2d(table_width, max_relative_position)
            self.rel_pos_embed_v = RelativePosition2d(table_width, max_relative_position)
        self.proj = ElasticLinear(embed, embed)

    def q(self, heads: int) -> int:
        """Width of queries, keys and values."""
        return self.head_dim * heads if self.change_qkv else self.embed

    def softmax_scale(self, embed: int, heads: int) -> float:
        """Factor of the logits."""
        return float((self.head_dim if self.change_qkv else embed // heads) ** -0.5)

    def forward(self, x: Tensor, heads: int) -> Tensor:
        """(B, N, e) -> (B, N, e)."""
        embed, width = x.shape[-1], self.q(heads)
        q, k, v = self.qkv(x, 3 * width).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        y = self.attend(q, k, v, self.softmax_scale(embed, heads)).transpose(1, 2).flatten(2)
        if self.scale:
            y = y * (self.embed / width)
        return self.proj(y, embed)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Heads (B, h, N, C) -> (B, h, N, C)."""
        keys, values = self.rel_pos_embed_k, self.rel_pos_embed_v
        if keys is None or values is None:
            if self.relative == "official":  # rounds as the released code does
                return (q @ k.mT * scale).softmax(-1) @ v
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
        patches = q.shape[2] - 1
        ragged = math.isqrt(patches) ** 2 != patches
        form = official_attention if self.relative == "official" or ragged else separable_attention
        return form(q, k, v, keys, values, scale)
