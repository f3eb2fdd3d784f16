"""EcoFormer's attention as three Triton kernels, for inference on CUDA: nothing of N x m or N x b floats is kept.

From unnormalised query-key vectors q_i and values v_i, for every sample and head:

    means       u_i = q_i / |q_i|, sums of u_i and |u_i|^2 over a run of tokens
    (outside)   sigma = mean |u|^2 + mean |a|^2 - 2 mean(u) . mean(a)
    codes       d = |u|^2 + |a|^2 - 2 u . a,  K = exp(-d / (2 sigma)) - mvec,  h = sign(K A^T),
                ctx = sum_j h_j v_j^T and ksum = sum_j h_j over a run of tokens
    outputs     out_i = (h_i ctx + c V_i) / (h_i . ksum + N c),  V_i = v_i ("released") or sum_j v_j ("global")

A run of tokens is one program's; runs are added in torch in their order, so that results do not change from call to
call. Codes are stored as int8 and not as bits, since a code of a zero `pre` is 0. All sums are in float32 and products
without TF32; `ksum` and denominators are whole numbers and exact.

Run so far in Triton's interpreter only (CPU, Triton 3.7): codes those of `KernelHash`, outputs to 1e-5. Triton's
compiler takes them for compute capability 7.5 and 9.0, but no GPU was at hand: no speed was measured, and where a GPU's
exponential differs in the last bits, a code whose `pre` is within rounding of 0 may differ.

Shapes: B batch, H heads, N tokens, C head width, m supports, b bits; WIDTH, MS and BS are C, m and b rounded up to a
power of two, and what is past C, m and b is 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecoformer.method.kernel_hash import TINY
from ecoformer.method.linear_attention import EXACT

_BLOCK = 32  # tokens of a tile
_RUNS = 64  # programs of one sample and head, at most: each leaves sums of b x C floats
_LARGEST_WIDTH, _LARGEST_SUPPORTS, _LARGEST_BITS = 128, 32, 32  # 48 KiB of shared memory, which every GPU has
_LARGEST_GRID = 65535  # programs along the second axis of a grid
_KINDS = {torch.float32, torch.float16, torch.bfloat16}


def fits(qk: Tensor, v: Tensor, A: Tensor, bias: float) -> bool:
    """Whether the kernels take these tensors: widths and kinds they hold, denominators exact in float32, no gradient.

    Args:
        qk, v: (B, H, N, C). A: (H, b, m). bias: c.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (qk, v, A)):
        return False
    (_, bits, supports), tokens = A.shape, qk.shape[2]
    held = qk.shape[3] <= _LARGEST_WIDTH and supports <= _LARGEST_SUPPORTS and bits <= _LARGEST_BITS
    counted = tokens * (bits + bias) < EXACT and tokens <= _BLOCK * _LARGEST_GRID
    return held and counted and qk.shape == v.shape and qk.numel() > 0 and {qk.dtype, v.dtype} <= _KINDS


# Arguments of kernels have no types: what Triton is given are pointers and numbers of its own.
@triton.jit
def _unit(x, tiny: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows by their length; rows of no length as they are."""
    length = tl.sqrt_rn(tl.sum(x * x, axis=1))
    return tl.div_rn(x, tl.broadcast_to(tl.where(length > tiny, length, 1.0)[:, None], x.shape))


@triton.jit
def _means(  # type: ignore[no-untyped-def]
    qk, sums, squares, tokens, heads, blocks, stride_b, stride_h, stride_n,
    TINY: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1)
    qk += pair // heads * stride_b + pair % heads * stride_h
    lane = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    for block in range(blocks):
        rows = (run * blocks + block) * BLOCK + tl.arange(0, BLOCK)
        live = (rows < tokens)[:, None] & (lane < C)[None, :]
        place = qk + rows.to(tl.int64)[:, None] * stride_n + lane[None, :]
        u = _unit(tl.load(place, mask=live, other=0.0).to(tl.float32), TINY)
        total += tl.sum(u, axis=0)
        square += tl.sum(u * u, axis=1)
    slot = pair * tl.num_programs(1) + run
    tl.store(sums + slot * C + lane, total, mask=lane < C)
    tl.store(squares + slot, tl.sum(square, axis=0))


@triton.jit
def _codes(  # type: ignore[no-untyped-def]
    qk, v, anchor, mvec, A, sigma, codes, contexts, counts, tokens, heads, blocks,
    stride_b, stride_h, stride_n, v_stride_b, v_stride_h, v_stride_n,
    TINY: tl.constexpr, C: tl.constexpr, M: tl.constexpr, BITS: tl.constexpr,
    WIDTH: tl.constexpr, MS: tl.constexpr, BS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1)
    batch = pair // heads
    head = pair % heads
    qk += batch * stride_b + head * stride_h
    v += batch * v_stride_b + head * v_stride_h
    lane = tl.arange(0, WIDTH)
    support = tl.arange(0, MS)
    bit = tl.arange(0, BS)
    inside = (lane < C)[:, None] & (support < M)[None, :]
    a_cm = tl.load(anchor + head * M * C + support[None, :] * C + lane[:, None], mask=inside, other=0.0)
    inside = (support < M)[:, None] & (bit < BITS)[None, :]
    A_mb = tl.load(A + head * BITS * M + bit[None, :] * M + support[:, None], mask=inside, other=0.0)
    mean = tl.load(mvec + head * M + support, mask=support < M, other=0.0)
    lengths_a = tl.sum(a_cm * a_cm, axis=0)
    twice = tl.zeros([BLOCK, MS], tl.float32) + 2 * tl.load(sigma + pair)
    context = tl.zeros([BS, WIDTH], tl.float32)
    count = tl.zeros([BS], tl.float32)
    for block in range(blocks):
        rows = (run * blocks + block) * BLOCK + tl.arange(0, BLOCK)
        alive = (rows < tokens)[:, None]
        live = alive & (lane < C)[None, :]
        wide = rows.to(tl.int64)[:, None]
        u = _unit(tl.load(qk + wide * stride_n + lane[None, :], mask=live, other=0.0).to(tl.float32), TINY)
        dots = tl.dot(u, a_cm, input_precision="ieee")
        sq_dist = tl.sum(u * u, axis=1)[:, None] + lengths_a[None, :] - 2 * dots
        kernel = tl.exp(tl.div_rn(-sq_dist, twice)) - mean[None, :]
        pre = tl.dot(kernel, A_mb, input_precision="ieee")  # past m: A is 0; past b: `pre` is 0, and so is the code
        h = tl.where(pre > 0, 1.0, 0.0) - tl.where(pre < 0, 1.0, 0.0)
        h = tl.where(alive, h, 0.0)
        place = codes + (pair * tokens + wide) * BITS + bit[None, :]
        tl.store(place, h.to(tl.int8), mask=alive & (bit < BITS)[None, :])
        values = tl.load(v + wide * v_stride_n + lane[None, :], mask=live, other=0.0).to(tl.float32)
        context += tl.dot(tl.trans(h), values, input_precision="ieee")
        count += tl.sum(h, axis=0)
    slot = pair * tl.num_programs(1) + run
    inside = (bit < BITS)[:, None] & (lane < C)[None, :]
    tl.store(contexts + (slot * BITS + bit)[:, None] * C + lane[None, :], context, mask=inside)
    tl.store(counts + slot * BITS + bit, count, mask=bit < BITS)


@triton.jit
def _outputs(  # type: ignore[no-untyped-def]
    codes, contexts, counts, own, out, tokens, heads, bias, everyone, own_stride_b, own_stride_h, own_stride_n,
    C: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr, BS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    own += batch * own_stride_b + head * own_stride_h
    lane = tl.arange(0, WIDTH)
    bit = tl.arange(0, BS)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    alive = (rows < tokens)[:, None]
    live = alive & (lane < C)[None, :]
    wide = rows.to(tl.int64)[:, None]
    place = codes + (pair * tokens + wide) * BITS + bit[None, :]
    h = tl.load(place, mask=alive & (bit < BITS)[None, :], other=0).to(tl.float32)
    inside = (bit < BITS)[:, None] & (lane < C)[None, :]
    context = tl.load(contexts + (pair * BITS + bit)[:, None] * C + lane[None, :], mask=inside, other=0.0)
    count = tl.load(counts + pair * BITS + bit, mask=bit < BITS, other=0.0)
    values = tl.load(own + wide * own_stride_n + lane[None, :], mask=live, other=0.0).to(tl.float32)
    above = tl.dot(h, context, input_precision="ieee") + bias * values
    below = tl.sum(h * count[None, :], axis=1) + everyone
    below = tl.where(below > 0, below, 1.0)  # as the plain form: a bias below b may leave 0
    place = out + ((batch * tokens + wide) * heads + head) * C + lane[None, :]  # (B, N, H, C): heads join for nothing
    tl.store(place, tl.div_rn(above, tl.broadcast_to(below[:, None], above.shape)).to(out.dtype.element_ty), mask=live)


def launch(
    qk: Tensor, v: Tensor, anchor: Tensor, mvec: Tensor, A: Tensor, bias: float, mode: str = "released"
) -> tuple[Tensor, Tensor]:
    """Query-key vectors and values (B, H, N, C) to outputs (B, H, N, C) of v's kind and codes (B, H, N, b) in int8.

    The caller asks `fits` first. Strided views are read in place when their last axis is contiguous.

    Args:
        anchor, mvec, A: (1, H, m, C), (1, H, 1, m), (H, b, m) of a fitted hash. bias: c. mode: "released" or "global".
    """
    (batch, heads, tokens, width), (_, bits, supports) = qk.shape, A.shape
    qk, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (qk.detach(), v.detach()))
    anchor, mvec, A = (t.detach().float().contiguous() for t in (anchor, mvec, A))
    WIDTH, MS, BS = (max(16, triton.next_power_of_2(size)) for size in (width, supports, bits))  # 16: tl.dot's least
    tiles = triton.cdiv(tokens, _BLOCK)
    blocks = triton.cdiv(tiles, _RUNS)
    runs = triton.cdiv(tiles, blocks)
    sums, squares = (qk.new_empty(batch, heads, runs, *last, dtype=torch.float32) for last in ((width,), ()))
    contexts, counts = (qk.new_empty(batch, heads, runs, bits, *last, dtype=torch.float32) for last in ((width,), ()))
    codes = qk.new_empty(batch, heads, tokens, bits, dtype=torch.int8)
    out = v.new_empty(batch, tokens, heads, width)
    with torch.cuda.device_of(qk):
        _means[batch * heads, runs](
            qk, sums, squares, tokens, heads, blocks, *qk.stride()[:3], TINY, width, WIDTH, _BLOCK
        )
        centre, lengths_a = anchor.mean(-2), anchor.square().sum(-1).mean(-1)
        sigma = squares.sum(-1) / tokens + lengths_a - 2 * (sums.sum(-2) / tokens * centre).sum(-1)
        sigma = sigma.clamp_min(torch.finfo(torch.float32).tiny).contiguous()
        _codes[batch * heads, runs](
            qk, v, anchor, mvec, A, sigma, codes, contexts, counts, tokens, heads, blocks,
            *qk.stride()[:3], *v.stride()[:3], TINY, width, supports, bits, WIDTH, MS, BS, _BLOCK,
            num_stages=1,  # more would hold tiles of coming tokens in shared memory, past what every GPU has
        )  # fmt: skip
        own = v if mode == "released" else v.sum(-2, keepdim=True, dtype=torch.float32).expand(v.shape)
        _outputs[batch * heads, tiles](
            codes, contexts.sum(-3), counts.sum(-2), own, out, tokens, heads, bias, tokens * bias,
            *own.stride()[:3], width, bits, WIDTH, BS, _BLOCK,
        )  # fmt: skip
    return out.transpose(1, 2), codes
