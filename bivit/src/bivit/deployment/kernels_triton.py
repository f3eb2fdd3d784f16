"""A packed linear as two Triton kernels for CUDA: signs of the inputs to words, products by popcount.

    words    x (R, I) -> bits of 1 where x > 0 (>= 0 for the rule "plus"), and of 1 where x is not 0, 32 to a word
    product  dot = |n| - 2 popcount((x ^ w) & n),   y = dot * scale + bias

The popcount is by shifts and sums, which every GPU has; dot is exact. A NaN makes its row NaN.

Run so far in Triton's interpreter only (CPU): no GPU was at hand and no speed was measured. Tensor cores are not used;
against float16 on them, expect gains where weights are read once and memory decides, at small batches.

Shapes: R rows, I inputs, O outputs, W words of 32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _OUTPUTS = 16, 32
_LARGEST_GRID = 65535  # programs along the second axis of a grid


# Arguments of kernels have no types: what Triton is given are pointers and numbers of its own.
@triton.jit
def _pack(x, positive, nonzero, rows, inputs, words, PLUS: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1)
    lane = tl.arange(0, 32)
    column = word * 32 + lane
    live = (row < rows)[:, None] & (column < inputs)[None, :]
    value = tl.load(x + row[:, None] * inputs + column[None, :], mask=live, other=0.0).to(tl.float32)
    above = value >= 0 if PLUS else value > 0
    differs = (value < 0) | (value > 0) | PLUS
    bits = tl.where(above & live, 1, 0).to(tl.uint32) << lane[None, :].to(tl.uint32)
    there = tl.where(differs & live, 1, 0).to(tl.uint32) << lane[None, :].to(tl.uint32)
    tl.store(positive + row * words + word, tl.sum(bits, axis=1).to(tl.uint32), mask=row < rows)
    tl.store(nonzero + row * words + word, tl.sum(there, axis=1).to(tl.uint32), mask=row < rows)


@triton.jit
def _popcount(v):  # type: ignore[no-untyped-def]
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    v = v + (v >> 8)
    return ((v + (v >> 16)) & 0x3F).to(tl.int32)


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    positive, nonzero, weights, scale, bias, out, rows, outputs, words, ROWS: tl.constexpr, OUTPUTS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    here, there = row < rows, column < outputs
    differ = tl.zeros([ROWS, OUTPUTS], tl.int32)
    total = tl.zeros([ROWS], tl.int32)
    for word in range(words):
        x = tl.load(positive + row * words + word, mask=here, other=0)
        n = tl.load(nonzero + row * words + word, mask=here, other=0)
        w = tl.load(weights + column * words + word, mask=there, other=0)
        differ += _popcount((x[:, None] ^ w[None, :]) & n[:, None])
        total += _popcount(n)
    dot = (total[:, None] - 2 * differ).to(tl.float32)
    s = tl.load(scale + column, mask=there, other=0.0)
    b = tl.load(bias + column, mask=there, other=0.0)
    place = out + row[:, None] * outputs + column[None, :]
    tl.store(place, dot * s[None, :] + b[None, :], mask=here[:, None] & there[None, :])


def packed_linear(x: Tensor, weight_bits: Tensor, scale: Tensor, bias: Tensor, plus: bool) -> Tensor:
    """x (..., I), weight_bits (O, 8 ceil(I / 64)) uint8, scale and bias (O,) float32 -> (..., O) in float32."""
    inputs, outputs = x.shape[-1], len(scale)
    flat = x.reshape(-1, inputs).contiguous()
    weights = weight_bits.contiguous().view(torch.int32).view(torch.uint32)
    rows, words = len(flat), weights.shape[1]
    positive, nonzero = torch.empty(2, rows, words, dtype=torch.int32, device=x.device).view(torch.uint32).unbind(0)
    out = torch.empty(rows, outputs, device=x.device)
    blocks = triton.cdiv(rows, _ROWS)
    _pack[(blocks, words)](flat, positive, nonzero, rows, inputs, words, plus, _ROWS)
    grid = (blocks, triton.cdiv(outputs, _OUTPUTS))
    _product[grid](positive, nonzero, weights, scale, bias, out, rows, outputs, words, _ROWS, _OUTPUTS)
    out.masked_fill_(flat.isnan().any(1, keepdim=True), torch.nan)
    return out.view(*x.shape[:-1], outputs)


def fits(x: Tensor, outputs: int) -> bool:
    """Whether the kernels take a layer with this input: floats without gradients, and a grid that CUDA has."""
    if x.requires_grad and torch.is_grad_enabled():
        return False
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return x.dtype in kinds and x.numel() > 0 and max(x.shape[-1] // 32, outputs // _OUTPUTS) < _LARGEST_GRID
