"""Local and global attention over space and time together (STPT, section 3: LSTA and GSTA).

Early layers look at local patterns anyway, so they pay for no more: attention inside 3D windows. Late layers, on small
maps, look everywhere. Which sizes the authors took is not public; the forms follow the paper's text.

Shapes: B batch, T frames, H height, W width of the map, C channels, N = T H W tokens, w tokens of a window, h heads,
d = C / h. Maps are channels-last here, (B, T, H, W, C).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stpt.method.bfloat16_attention import attend, by_products
from stpt.method.linear_layers import Linear

REDUCTIONS = ("depthwise", "avg", "max", "conv")
WHOLE = 1 << 30
"""A window's size along an axis that it spans, whatever the map's size."""


def split_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(B, T, H, W, C) -> (B n, w, C): the n cubes of a map whose sides are multiples of the window's."""
    B, T, H, W, C = x.shape
    wt, wh, ww = window
    x = x.reshape(B, T // wt, wt, H // wh, wh, W // ww, ww, C)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wt * wh * ww, C)


def join_windows(x: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """The inverse of `split_windows`: (B n, w, C) -> (B, T, H, W, C) with T, H, W of `size`."""
    (T, H, W), (wt, wh, ww) = size, window
    x = x.reshape(-1, T // wt, H // wh, W // ww, wt, wh, ww, x.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, T, H, W, x.shape[-1])


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of q (B, h, N, d), k and v (B, h, M, d); mask: True where a key counts."""
    if mask is None and by_products(q):
        return attend(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _check_heads(dim: int, heads: int) -> None:
    if heads < 1 or dim % heads:
        raise ValueError(f"{dim} channels cannot be shared by {heads} heads")


def triple(name: str, value: Sequence[int]) -> tuple[int, int, int]:
    """Three sizes from 1 on, along frames, height and width.

    Raises:
        ValueError: other values; `name` says of what.
    """
    if len(value) != 3 or min(value) < 1:
        raise ValueError(f"{name} {tuple(value)} must be three sizes from 1 on: frames, height, width")
    return value[0], value[1], value[2]


class LocalAttention(nn.Module):
    """LSTA: multi-head attention inside non-overlapping 3D windows. 4 N C^2 + 2 N w C multiply-accumulates.

    A map whose sides are no multiples of the window's is padded behind its last token, and the padding is masked as
    keys. Along an axis where the map is smaller than the window, the window shrinks to the map. Windows are not
    shifted: what lies between them is seen by the positional convolutions, the patch embeddings and GSTA.

    Args:
        dim: C. heads: h. window: frames, height and width of a window, in tokens.

    Raises:
        ValueError: C is no multiple of h, or a window that is not three sizes from 1 on.
    """

    def __init__(self, dim: int, heads: int, window: Sequence[int]) -> None:
        super().__init__()
        _check_heads(dim, heads)
        self.heads, self.window = heads, triple("window", window)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same."""
        B, T, H, W, _ = x.shape
        window = [min(side, most) for side, most in zip((T, H, W), self.window, strict=True)]
        pad = [-side % most for side, most in zip((T, H, W), window, strict=True)]
        mask = None
        if any(pad):
            behind = (0, pad[2], 0, pad[1], 0, pad[0])
            real = F.pad(torch.ones(1, T, H, W, 1, dtype=torch.bool, device=x.device), (0, 0, *behind))
            mask = split_windows(real, window).transpose(1, 2).unsqueeze(1).repeat(B, 1, 1, 1)  # (B n, 1, 1, w)
            x = F.pad(x, (0, 0, *behind))
        # The map is cut before the projection: copying C channels, not 3 C (1.2 times as fast, measured on a CPU).
        windows_nwc = split_windows(x, window)
        q, k, v = self.qkv(windows_nwc).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = attention(q, k, v, mask).transpose(1, 2).flatten(2)
        return join_windows(self.proj(y), window, x.shape[1:4])[:, :T, :H, :W]

    def extra_repr(self) -> str:
        """Shown in the printed network."""
        return f"heads={self.heads}, window={self.window}"


class GlobalAttention(nn.Module):
    """GSTA: every token asks all tokens, whose keys and values may be reduced. 2 N (N / prod r) C for the products.

    A map whose sides are no multiples of r is padded with zeros behind its last token before it is reduced.

    Args:
        dim: C. heads: h. reduction: r along frames, height and width; 1 everywhere keeps all tokens.
        kind: how keys and values are reduced: `depthwise` convolution with kernel and stride r, mean (`avg`), maximum
            (`max`), or a dense convolution (`conv`); a LayerNorm follows.

    Raises:
        ValueError: C is no multiple of h, a reduction that is not three sizes from 1 on, or an unknown kind.
    """

    def __init__(self, dim: int, heads: int, reduction: Sequence[int] = (1, 1, 1), kind: str = "depthwise") -> None:
        super().__init__()
        _check_heads(dim, heads)
        self.heads, self.ratio = heads, triple("reduction", reduction)
        if kind not in REDUCTIONS:
            raise ValueError(f"reduction by '{kind}'; the kinds are {', '.join(REDUCTIONS)}")
        if self.ratio == (1, 1, 1):
            self.qkv = Linear(dim, 3 * dim)
        else:
            self.q, self.kv = Linear(dim, dim), Linear(dim, 2 * dim)
            self.reduction = _reduction(dim, self.ratio, kind)
            self.reduction_norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same."""
        q, k, v = self.queries_keys_values(x)
        y = attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(y).unflatten(1, x.shape[1:4])

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, H, W, C) -> queries (B, h, N, d), keys and values (B, h, reduced N, d)."""
        if self.ratio == (1, 1, 1):
            q, k, v = self.qkv(x.flatten(1, 3)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        q = self.q(x.flatten(1, 3)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pad = [-side % r for side, r in zip(x.shape[1:4], self.ratio, strict=True)]
        if any(pad):
            x = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        reduced = self.reduction(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).flatten(1, 3)
        k, v = self.kv(self.reduction_norm(reduced)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def extra_repr(self) -> str:
        """Shown in the printed network."""
        return f"heads={self.heads}, reduction={self.ratio}"


def _reduction(dim: int, ratio: tuple[int, int, int], kind: str) -> nn.Module:
    """(B, C, T, H, W) -> sides divided by the ratio."""
    if kind == "avg":
        return nn.AvgPool3d(ratio)
    if kind == "max":
        return nn.MaxPool3d(ratio)
    return nn.Conv3d(dim, dim, ratio, stride=ratio, groups=dim if kind == "depthwise" else 1)


class FactorisedAttention(nn.Module):
    """Space and time one after the other, the form that joint attention is compared with (an ablation of the paper).

    Every frame attends to itself, then every place attends along time; each adds to its input. The order and the norm
    between them are choices made here: the paper's are not public.

    Args:
        dim: C. heads: h.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.space = LocalAttention(dim, heads, (1, WHOLE, WHOLE))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.time = LocalAttention(dim, heads, (WHOLE, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same."""
        space = self.space(x)
        return space + self.time(self.norm(x + space))
