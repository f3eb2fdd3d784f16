"""The softmax attentions that EcoFormer stands beside: full, with reduced keys, in windows.

Shapes: B batch, H heads, N tokens, D dim = H C, C head width, M keys, h x w grid of tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.errors import UserError

BACKENDS = ("auto", "explicit", "sdpa")
SMALL_MAP = 10_000
"""Pairs of a head up to which the explicit map is the quicker one, on several threads of a CPU.

Measured on two threads (AMD Zen 5, float32, batches 1 and 32): SDPA takes 1.3 to 1.8 times the explicit form's time for
49 x 49 and 196 x 49 pairs, 0.8 to 0.95 for 196 x 196, 0.2 for 3136 x 3136. On one thread it is never slower."""


def check_heads(dim: int, num_heads: int) -> int:
    """C = D / H.

    Raises:
        UserError: heads that do not divide the width.
    """
    if num_heads < 1 or dim % num_heads:
        raise UserError(f"{dim} channels are no multiple of {num_heads} heads")
    return dim // num_heads


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, H, N, C); the head is the slow part of the channels."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, N, C) -> (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


def chosen(q: Tensor, k: Tensor) -> str:
    """What "auto" takes for queries (B, H, N, C) and keys (B, H, M, C): "explicit" for small maps, "sdpa" for others.

    Explicit is the quicker one for small maps on a CPU with several threads. With gradients it would keep the map, and
    a traced graph must not depend on the sizes it was traced with: SDPA there, and on every other device.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if q.device.type != "cpu" or traced or torch.is_grad_enabled() or torch.get_num_threads() == 1:
        return "sdpa"
    return "explicit" if q.shape[2] * k.shape[2] <= SMALL_MAP else "sdpa"


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, backend: str = "auto"
) -> Tensor:
    """softmax(q k^T / sqrt C) v.

    Args:
        mask: (B, M), True for a key that counts.
        backend: "sdpa" (torch's fused attention), "explicit" (the map as a tensor), or "auto": the quicker one for
            the sizes, see `chosen`.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend '{backend}' of a softmax attention is none of {', '.join(BACKENDS)}")
    backend = chosen(q, k) if backend == "auto" else backend
    seen = None if mask is None else mask[:, None, None]
    if causal and (seen is not None or backend == "explicit"):
        lower = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        seen = lower if seen is None else seen & lower
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal and seen is None)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores if seen is None else scores.masked_fill(~seen, -torch.inf)).softmax(-1) @ v


class MSA(nn.Module):
    """Plain multi-head self-attention. Keys: qkv, proj.

    Args:
        dim, num_heads: D and H. qkv_bias: bias of `qkv`. proj_drop: dropout behind `proj`. backend: see
            `softmax_attention`.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, proj_drop: float = 0.0, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.head_dim, self.num_heads, self.backend = check_heads(dim, num_heads), num_heads, backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, size: Any = None, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D); the grid `size` plays no role here."""
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, -1))
        return self.proj_drop(self.proj(join_heads(softmax_attention(q, k, v, mask, causal, self.backend))))


class SRA(nn.Module):
    """Attention with keys and values from a grid that is smaller by `sr_ratio` a side (PVTv2, Twins' global blocks).

    Keys: q, kv, proj; with a ratio above 1 also sr and norm.
    """

    def __init__(
        self, dim: int, num_heads: int, sr_ratio: int = 1, qkv_bias: bool = True, proj_drop: float = 0.0,
        backend: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        self.head_dim, self.num_heads, self.backend = check_heads(dim, num_heads), num_heads, backend
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)  # eps 1e-5, other than in the blocks

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, h w, D) -> (B, h w, D) with the grid `size` (h, w)."""
        reduced = x
        if self.sr_ratio > 1:
            reduced = self.norm(self.sr(x.mT.unflatten(2, size)).flatten(2).mT)
        k, v = (split_heads(t, self.num_heads) for t in self.kv(reduced).chunk(2, -1))
        out = softmax_attention(split_heads(self.q(x), self.num_heads), k, v, backend=self.backend)
        return self.proj_drop(self.proj(join_heads(out)))


class WindowMSA(MSA):
    """Self-attention inside windows of `window` x `window` tokens (Twins' local blocks). Keys: qkv, proj.

    A grid that the window does not divide is filled with zero tokens at the right and the bottom, which take part.
    """

    def __init__(self, dim: int, num_heads: int, window: int, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        self.window = window

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """(B, h w, D) -> (B, h w, D) with the grid `size` (h, w)."""
        (height, width), w = size, self.window
        grid = F.pad(x.unflatten(1, size), (0, 0, 0, -width % w, 0, -height % w))
        rows, columns = grid.shape[1] // w, grid.shape[2] // w
        windows = grid.unflatten(2, (columns, w)).unflatten(1, (rows, w)).transpose(2, 3)  # (B, rows, columns, w, w, D)
        out = super().forward(windows.reshape(-1, w * w, x.shape[-1]))
        out = out.reshape(windows.shape).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return out[:, :height, :width].flatten(1, 2)
