"""Hi-Fi: self-attention inside s x s windows, in three forms with the same results.

Shapes: B batch, Hp x Wp token grid (multiples of s), n heads, d head width, K = s * s keys,
G = B * Hp/s * Wp/s windows.

The size rule (`choose_form`), from measurements on one CPU thread and the shape of GPU kernels:

    CUDA, s <= 4, d a power of two >= 16    "triton"    one kernel without copies (a fused kernel's tile has 64 rows)
    at most 4 keys                          "explicit"  two batched products; a 4 x 4 matrix need not be hidden
    else                                    "sdpa"      torch's fused attention

`window_attention(..., form=...)` overrides it.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from litv2.method.token_grid import copied

Form = Literal["auto", "explicit", "sdpa", "triton"]


def choose_form(window: int, head_dim: int, device: torch.device, masked: bool = False) -> Form:
    """The size rule of this file's docstring."""
    if device.type == "cuda" and not masked and not torch.compiler.is_compiling() and window <= 4:
        from litv2.method import window_attention_triton

        if window_attention_triton.fits(head_dim):
            return "triton"
    return "explicit" if window <= 2 else "sdpa"


def window_attention(
    qkv: Tensor, heads: int, window: int, scale: float, real_hw: Tensor | None = None, form: Form = "auto"
) -> Tensor:
    """(B, Hp, Wp, 3 * n * d) -> (B, Hp, Wp, n * d), softmax over the s * s keys of each token's own window.

    Args:
        qkv: q, k, v along the last axis, each with its heads in order; a strided view is fine.
        heads: n.
        window: s; must divide Hp and Wp.
        scale: factor on the logits.
        real_hw: (Hp, Wp), 0 where a token is padding that no key may come from; None for no mask.
        form: which of the equal forms computes it.
    """
    if form == "auto":
        form = choose_form(window, qkv.shape[-1] // (3 * heads), qkv.device, real_hw is not None)
    if form == "triton":
        return _Kernel.apply(qkv, heads, window, scale)
    return _batched(qkv, heads, window, scale, real_hw, fused=form == "sdpa")


class _Kernel(torch.autograd.Function):
    """The Triton kernel; its backward pass recomputes through the explicit form, which torch differentiates."""

    @staticmethod
    def forward(ctx, qkv: Tensor, heads: int, window: int, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        from litv2.method.window_attention_triton import launch

        if qkv.stride(-1) != 1:
            qkv = qkv.contiguous()
        ctx.save_for_backward(qkv)
        ctx.options = heads, window, scale
        return launch(qkv, heads, window, scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        (qkv,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = qkv.detach().requires_grad_()
            heads, window, scale = ctx.options
            out = window_attention(leaf, heads, window, scale, form="explicit")
        return torch.autograd.grad(out, leaf, grad)[0], None, None, None


def _windows(x: Tensor, window: int) -> Tensor:
    """(B, Hp, Wp, C) -> (B, Hp/s, s, Wp/s, s, C), a view."""
    return x.unflatten(2, (-1, window)).unflatten(1, (-1, window))


def _batched(qkv: Tensor, heads: int, window: int, scale: float, real_hw: Tensor | None, fused: bool) -> Tensor:
    batch, height, width, channels = qkv.shape
    d, rows, columns, keys = channels // (3 * heads), height // window, width // window, window * window
    # (3, B, Hp/s, Wp/s, n, s, s, d), row-major inside the window
    split = _windows(qkv, window).unflatten(-1, (3, heads, d)).permute(5, 0, 1, 3, 6, 2, 4, 7)
    q_gnkd, k_gnkd, v_gnkd = copied(split).view(3, batch * rows * columns, heads, keys, d).unbind(0)
    bias = None
    if real_hw is not None:
        real_gk = real_hw.view(rows, window, columns, window).transpose(1, 2).reshape(1, -1, keys)
        bias = torch.zeros_like(real_gk).masked_fill(real_gk == 0, float("-inf")).expand(batch, -1, -1)
        bias = bias.reshape(-1, 1, 1, keys).to(qkv.dtype)
    if fused:
        out = F.scaled_dot_product_attention(q_gnkd, k_gnkd, v_gnkd, attn_mask=bias, scale=scale)
    else:
        logits_gnqk = (q_gnkd * scale) @ k_gnkd.transpose(-1, -2)
        out = (logits_gnqk if bias is None else logits_gnqk + bias).softmax(dim=-1) @ v_gnkd
    out = out.view(batch, rows, columns, heads, window, window, d).permute(0, 1, 4, 2, 5, 3, 6)
    return copied(out).view(batch, height, width, heads * d)
