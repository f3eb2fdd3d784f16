"""HiLo attention (Pan, Cai, Zhuang, "Fast Vision Transformers with HiLo Attention", NeurIPS 2022, section 3.2).

The heads of one layer split into two groups. The Hi-Fi group attends inside windows of s x s tokens, the Lo-Fi group
lets every token attend to the average of each window. The outputs stand beside each other on the channel axis.

Shapes: B batch, H height, W width in tokens, N = H * W, D channels, s window, n heads of a group, d head width,
K keys (s * s inside a window, one per window for Lo-Fi). "Hp, Wp" is the grid padded to multiples of s.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litv2.method.costs import hilo_macs, split_heads
from litv2.method.token_grid import copied, on_grid, pad_to_multiple
from litv2.method.window_attention import Form, window_attention
from paperkit.errors import UserError


class HiLo(nn.Module):
    """HiLo attention on a grid of tokens; a drop-in for multi-head self-attention on any H and W.

    With h_qkv, l_q, l_kv linear maps, `A(q, k, v) = softmax(q k^T / sqrt(d)) v`, windows w of s x s tokens:

        Hi-Fi(x)_w = A(h_qkv(x_w)) h_proj        Lo-Fi(x) = A(l_q(x), l_kv(pool_s(x))) l_proj
        HiLo(x)    = concat(Hi-Fi(x), Lo-Fi(x))

    A grid that s does not divide is padded with zeros on the right and at the bottom, as the authors' dense models do:
    padded tokens take part in the window's softmax with q, k, v equal to the biases, and enter the pooled average as
    zeros.

    Args:
        dim: D.
        num_heads: heads of both groups together; d = D / num_heads.
        window_size: s. 1 makes the layer plain MSA under the Lo-Fi parameter names, whatever alpha is.
        alpha: share of Lo-Fi heads, truncated to whole heads. 0 has no `l_*` parameters, 1 has no `h_*`.
        qkv_bias: bias of l_q, l_kv and h_qkv; the two projections always have one.
        qk_scale: replaces d ** -0.5 (0 and None mean the default).
        l_heads: number of Lo-Fi heads, instead of alpha (which truncates).
        mask_padding: keep padded tokens out of softmax and average. Not what the released dense models do.

    Raises:
        UserError: D not a multiple of the heads, alpha outside [0, 1], l_heads above num_heads, s below 1.

    Example::

        layer = HiLo(384, num_heads=12, window_size=2, alpha=0.9)
        y = layer(tokens, 14, 14)      # (B, 196, 384) -> (B, 196, 384)
        y = layer(grid)                # (B, 14, 14, 384) -> (B, 14, 14, 384)
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        window_size: int = 2,
        alpha: float = 0.5,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        l_heads: int | None = None,
        mask_padding: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise UserError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if window_size < 1:
            raise UserError(f"window_size {window_size} is below 1")
        if l_heads is not None and (not 0 <= l_heads <= num_heads or (window_size == 1 and l_heads != num_heads)):
            raise UserError(f"l_heads {l_heads} does not fit {num_heads} heads with window {window_size}")
        self.l_heads, self.h_heads = split_heads(num_heads, window_size, alpha)
        if l_heads is not None:
            self.l_heads, self.h_heads = l_heads, num_heads - l_heads
        self.dim, self.num_heads, self.window_size = dim, num_heads, window_size
        self.head_dim = dim // num_heads
        self.scale = qk_scale or self.head_dim**-0.5
        self.mask_padding = mask_padding
        self.fused_attn = True  # timm's name of it; False writes every attention matrix out, to compare
        self.l_dim, self.h_dim = self.l_heads * self.head_dim, self.h_heads * self.head_dim
        if self.l_heads:
            self.l_q = nn.Linear(dim, self.l_dim, bias=qkv_bias)
            self.l_kv = nn.Linear(dim, 2 * self.l_dim, bias=qkv_bias)
            self.l_proj = nn.Linear(self.l_dim, self.l_dim)
        if self.h_heads:
            self.h_qkv = nn.Linear(dim, 3 * self.h_dim, bias=qkv_bias)
            self.h_proj = nn.Linear(self.h_dim, self.h_dim)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) with H * W = N, or (B, H, W, D) -> the same shape."""
        return on_grid(self._grid, x, H, W)

    def _grid(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        hifi, lofi = self.branches(x)
        parts = [part[:, :height, :width] for part in (hifi, lofi) if part is not None]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def branches(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(B, H, W, D) -> Hi-Fi (B, Hp, Wp, h_dim) and Lo-Fi (B, Hp, Wp, l_dim), each after its projection.

        The grid is still padded. A group without heads gives None.
        """
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.window_size)
        real_hw = None
        if self.mask_padding and x.shape[1:3] != (height, width):
            real_hw = x.new_zeros(x.shape[1:3])
            real_hw[:height, :width] = 1
        q, qkv = self.read(x)
        hifi = None if qkv is None else self.h_proj(self.hifi(qkv, real_hw))
        lofi = None if q is None else self.l_proj(self.lofi(q, self.read_pooled(x, real_hw)))
        return hifi, lofi

    def read(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(B, Hp, Wp, D) -> Lo-Fi queries (B, Hp, Wp, l_dim) and Hi-Fi q, k, v (B, Hp, Wp, 3 * h_dim)."""
        return self.l_q(x) if self.l_heads else None, self.h_qkv(x) if self.h_heads else None

    def read_pooled(self, x: Tensor, real_hw: Tensor | None = None) -> Tensor:
        """(B, Hp, Wp, D) -> Lo-Fi keys and values (B, K, 2 * l_dim), from the average of every window.

        The average commutes with the affine map, so the cheaper order is exact.
        """
        if self.window_size > 1:
            x = copied(F.avg_pool2d(x.permute(0, 3, 1, 2), self.window_size).permute(0, 2, 3, 1))
            if real_hw is not None:
                x = x / F.avg_pool2d(real_hw[None, None], self.window_size)[:, 0, ..., None]
        return self.l_kv(x.flatten(1, 2))

    def hifi(self, qkv: Tensor, real_hw: Tensor | None = None) -> Tensor:
        """Attention inside windows: (B, Hp, Wp, 3 * h_dim) -> (B, Hp, Wp, h_dim)."""
        form: Form = "auto" if self.fused_attn else "explicit"
        return window_attention(qkv, self.h_heads, self.window_size, self.scale, real_hw, form)

    def lofi(self, q: Tensor, kv: Tensor) -> Tensor:
        """Attention of every position to the pooled tokens: (B, Hp, Wp, l_dim), (B, K, 2 * l_dim) -> (B, Hp, Wp,
        l_dim).

        Fused attention at every size: it never holds the N x K matrix, and was the faster one wherever measured.
        """
        grid = q.shape[1:3]
        q_bnqd = q.flatten(1, 2).unflatten(-1, (self.l_heads, -1)).transpose(1, 2)
        k_bnkd, v_bnkd = kv.unflatten(-1, (2, self.l_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q_bnqd, k_bnkd, v_bnkd, scale=self.scale)
        else:
            out = ((q_bnqd * self.scale) @ k_bnkd.transpose(-1, -2)).softmax(dim=-1) @ v_bnkd
        return out.transpose(1, 2).flatten(2).unflatten(1, grid)

    def flops(self, H: int, W: int) -> int:
        """Multiply-adds for one grid of H x W tokens, as the authors count them (section 3.2): no bias, no softmax."""
        return hilo_macs(H, W, self.dim, self.head_dim, self.l_heads, self.h_heads, self.window_size)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, Hi-Fi heads={self.h_heads}, Lo-Fi heads={self.l_heads}, window={self.window_size}"


def cheapest_window(layer: HiLo, height: int, width: int) -> int:
    """The window from 2 to the grid's longer side with the fewest multiply-adds on H x W tokens, padding counted."""
    heads = layer.head_dim, layer.l_heads, layer.h_heads
    return min(range(2, max(height, width, 2) + 1), key=lambda s: hilo_macs(height, width, layer.dim, *heads, s))
