"""Hi-Fi attention as one Triton kernel: reads q, k, v in place, writes the output in place, no window copies.

A program holds one head of a run of windows and walks over the s * s queries; each query meets the window's s * s keys
as elementwise products, because tiles of matrix units (16 rows and more) would stand mostly empty for four keys.

Shapes as in `litv2.method.window_attention`, which also holds the backward pass.
"""

import triton
import triton.language as tl
from torch import Tensor

_WINDOWS = 32  # windows a program holds; 32 x 32 floats per tile keep the registers of four warps


def fits(head_dim: int) -> bool:
    """Whether the kernel takes this head width: a power of two, so that a tile has no ragged edge."""
    return head_dim >= 16 and head_dim & (head_dim - 1) == 0


@triton.jit  # arguments without types: what Triton is given are pointers and numbers of its own
def _forward(  # type: ignore[no-untyped-def]
    qkv, out, total, rows, columns, stride_b, stride_h, stride_w, heads, scale,
    S: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    window = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    alive = (window < total)[:, None]
    batch = window // (rows * columns)
    row = window // columns % rows
    column = window % columns
    lane = head * D + tl.arange(0, D)
    corner = batch * stride_b + row * S * stride_h + column * S * stride_w
    base = corner[:, None] + lane[None, :]
    out_corner = ((batch * rows + row) * S * columns + column) * S * heads * D
    out_base = out_corner[:, None] + lane[None, :]
    for i in tl.static_range(S):
        for j in tl.static_range(S):
            q = tl.load(qkv + base + i * stride_h + j * stride_w, mask=alive, other=0.0).to(tl.float32) * scale
            # softmax of one pass: running maximum, running sum, running output
            top = tl.full([BLOCK], float("-inf"), tl.float32)
            mass = tl.zeros([BLOCK], tl.float32)
            mixed = tl.zeros([BLOCK, D], tl.float32)
            for y in tl.static_range(S):
                for x in tl.static_range(S):
                    place = qkv + base + y * stride_h + x * stride_w
                    k = tl.load(place + heads * D, mask=alive, other=0.0).to(tl.float32)
                    v = tl.load(place + 2 * heads * D, mask=alive, other=0.0).to(tl.float32)
                    logit = tl.sum(q * k, axis=1)
                    higher = tl.maximum(top, logit)
                    keep = tl.exp(top - higher)
                    share = tl.exp(logit - higher)
                    mass = mass * keep + share
                    mixed = mixed * keep[:, None] + share[:, None] * v
                    top = higher
            place = out + out_base + (i * columns * S + j) * heads * D
            tl.store(place, (mixed / mass[:, None]).to(out.dtype.element_ty), mask=alive)


def launch(qkv: Tensor, heads: int, window: int, scale: float) -> Tensor:
    """(B, Hp, Wp, 3 * n * d), its last axis contiguous -> (B, Hp, Wp, n * d) on CUDA; no gradient flows through it."""
    batch, height, width, channels = qkv.shape
    out = qkv.new_empty(batch, height, width, channels // 3)
    rows, columns = height // window, width // window
    total = batch * rows * columns
    grid = (triton.cdiv(total, _WINDOWS), heads)
    _forward[grid](
        qkv, out, total, rows, columns, *qkv.stride()[:3], heads, scale, window, channels // (3 * heads), _WINDOWS
    )
    return out
