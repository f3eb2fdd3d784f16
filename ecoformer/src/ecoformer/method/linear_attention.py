"""Attention between binary codes in linear time (paper section 3.4).

<h_i, h_j> lies in [-b, b]; a bias c makes it positive, and the product is re-associated:

    out_i = (h_i^T sum_j h_j v_j^T + c * V_i) / (h_i . sum_j h_j + N c)

"released": V_i = v_i, the token's own value, as in the authors' code, which their weights need. The weights of a row do
not sum to one. "global": V_i = sum_j v_j, the consistent form: weights (<h_i, h_j> + c) / sum, all positive.

Shapes: B batch, H heads, N tokens, C head width, b bits.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ecoformer.method.kernel_hash import full_precision
from paperkit.errors import UserError

BIAS_MODES = ("released", "global")
BIASES = ("plus_one", "pow2")
CHUNK = 64
"""Tokens of a block of the causal form: inside a block products of pairs, between blocks running sums."""
EXACT = 1 << 24
"""Whole numbers up to here are exact in float32: sums of codes below it do not depend on their order."""


def bias_value(nbits: int, bias: str | float = "plus_one") -> float:
    """c: b + 1 as in the released code, or the power of two from there on (a shift in place of a product).

    Raises:
        UserError: no such bias, or one that leaves a similarity of 0 or less.
    """
    if isinstance(bias, str):
        if bias not in BIASES:
            raise UserError(f"bias '{bias}' is none of {', '.join(BIASES)}, and no number")
        return float(nbits + 1 if bias == "plus_one" else 2 ** math.ceil(math.log2(nbits + 1)))
    if not nbits < bias < math.inf:
        raise UserError(f"bias {bias} leaves negative similarities between codes of {nbits} bits; take more than that")
    return float(bias)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: float, mode: str = "released", mask: Tensor | None = None
) -> Tensor:
    """Codes (B, H, N, b) and values (B, H, N, C) to (B, H, N, C) in O(N b C).

    `q` and `k` are the same codes in the paper. Denominators are whole numbers and exact. The context is computed under
    whatever autocast is on, the rest in float32.

    Args:
        bias: c. mode: "released" or "global".
        mask: (B, N), True for a token; codes of padding must be 0 (a `KernelHash` with the mask makes them so).
    """
    if mode not in BIAS_MODES:
        raise UserError(f"bias_mode '{mode}' is none of {', '.join(BIAS_MODES)}")
    if mask is not None:
        v = v * mask[:, None, :, None]
    context = k.mT.to(v.dtype) @ v  # (B, H, b, C)
    with full_precision(v):
        wide = (
            torch.float64 if q.shape[2] * (q.shape[3] + bias) >= EXACT else torch.promote_types(q.dtype, torch.float32)
        )
        count = float(q.shape[2]) if mask is None else mask.sum(-1).to(wide)[:, None, None]
        denominator = (q.to(wide) @ k.to(wide).sum(-2)[..., None]).squeeze(-1) + count * bias
        denominator = torch.where(denominator > 0, denominator, 1.0)  # 0 where a sample is all padding
        v, kind = v.to(torch.promote_types(v.dtype, torch.float32)), v.dtype
        own = v if mode == "released" else v.sum(-2, keepdim=True)
        out = (q @ context.to(q.dtype) + bias * own) / denominator[..., None].to(v.dtype)
        return out.to(kind)


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: float,
    mode: str = "released",
    mask: Tensor | None = None,
    causal: bool = False,
    power: float = 1.0,
) -> Tensor:
    """The same through the map of all pairs (N x N): the reference, and the quicker way for a handful of tokens.

    Args:
        power: weights ((<h_i, h_j> + c) / (b + c))^p (an extension): larger is closer to a choice. Global bias alone.
    """
    weights, denominator = attention_map(q, k, bias, mode, mask, causal, power)
    return (weights @ v.to(weights.dtype) / denominator).to(v.dtype)


def attention_map(
    q: Tensor,
    k: Tensor,
    bias: float,
    mode: str = "released",
    mask: Tensor | None = None,
    causal: bool = False,
    power: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Weights (B, H, N, N) before and the denominator (B, H, N, 1) of their division."""
    if power != 1 and mode != "global":
        raise UserError(f"power {power} needs bias_mode 'global': the released form has weights below 0")
    with full_precision(q):
        products, tokens = q @ k.mT, q.shape[2]
        seen = q.new_ones(1, 1, 1, tokens) if mask is None else mask[:, None, None].to(q.dtype)
        if causal:
            seen = seen * torch.ones(tokens, tokens, dtype=q.dtype, device=q.device).tril()
        positive = (products + bias) * seen
        if power != 1:
            positive = (positive / (q.shape[-1] + bias)) ** power
        denominator = positive.sum(-1, keepdim=True)
        if mode == "released":
            positive = products * seen + bias * torch.eye(tokens, dtype=q.dtype, device=q.device) * seen
        return positive, torch.where(denominator > 0, denominator, 1.0)


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: float, mode: str = "global", mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """The global form by torch's fused attention: softmax of log(<h_i, h_j> + c) has just those weights.

    Raises:
        UserError: the released form, whose weights may be negative and have no logarithm.
    """
    if mode != "global":
        raise UserError("backend 'sdpa' computes bias_mode 'global'; the released form needs 'linear' or 'explicit'")
    weights, _ = attention_map(q, k, bias, mode, mask, causal)
    scores = weights.log().clamp_min(torch.finfo(weights.dtype).min)  # nobody seen: a row of padding, made 0 by callers
    nothing = torch.zeros_like(q)
    return F.scaled_dot_product_attention(nothing, nothing, v.to(q.dtype), attn_mask=scores).to(v.dtype)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: float, mode: str = "released", mask: Tensor | None = None
) -> Tensor:
    """Row i from the tokens up to i, in linear time: blocks of pairs, and prefix sums between them.

    Codes must be causal as well (`KernelHash(u, causal=True)`). Nothing of row i changes with later tokens.
    """
    if mode not in BIAS_MODES:
        raise UserError(f"bias_mode '{mode}' is none of {', '.join(BIAS_MODES)}")
    with full_precision(v):
        kind = v.dtype
        v = v.to(torch.promote_types(v.dtype, torch.float32))
        tokens = q.shape[2]
        seen = torch.ones_like(v[:, :1, :, 0]) if mask is None else mask[:, None].to(v.dtype)  # (B, 1, N)
        v = v * seen[..., None]
        more = -tokens % CHUNK
        q, k, v = (F.pad(t, (0, 0, 0, more)) for t in (q, k, v))
        seen = F.pad(seen, (0, more))
        counted = torch.cat([v, seen[..., None].expand(*v.shape[:3], 1)], -1)  # values, and a 1 that counts
        q, k, blocks = (t.unflatten(2, (-1, CHUNK)) for t in (q, k, counted))  # (B, H, n, CHUNK, .)
        pairs = (q @ k.mT).tril()
        state = F.pad((k.mT @ blocks).cumsum(2)[:, :, :-1], (0, 0, 0, 0, 1, 0))  # of the blocks before
        summed = pairs @ blocks + q @ state  # the last column: h_i . sum h_j over tokens that count
        out, similarity = summed.flatten(2, 3)[..., :-1], summed.flatten(2, 3)[..., -1:]
        running = counted.cumsum(2)
        own = v if mode == "released" else running[..., :-1]
        denominator = similarity + bias * running[..., -1:]
        return ((out + bias * own) / torch.where(denominator > 0, denominator, 1.0))[:, :, :tokens].to(kind)
