"""Attention, MLPs and whole blocks over packed linears, as one call of the C++ kernels takes them.

Between the layers of such a call there are only bits: LayerNorm and sign in one pass; q, k and v by thresholds on
integers; sums of the attention as signs; fc1 by a threshold that takes GELU's place.

Shapes: B batch, N tokens, C channels, H heads.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bivit.deployment import kernels
from bivit.deployment.kernels import Kernels, Struct
from bivit.deployment.packed_linear import PackedLinear, ZeroRule, linear_struct, serving
from bivit.method.attention import BinaryAttention, BlockAttention
from bivit.method.attention_rules import BoolScores, NaiveScores
from bivit.method.mlp import BinaryMlp
from bivit.method.packing import active_keys, dot_margin
from bivit.method.sign import Sign
from bivit.method.softmax_aware import BETA, SoftmaxAware


def norm_struct(norm: nn.Module | None) -> Struct:
    """A LayerNorm for the kernels; none: signs of the tokens themselves."""
    if norm is None:
        return Struct(kernels.NORM.pack(0, 0, 0, 0.0), [])
    assert isinstance(norm, nn.LayerNorm)
    if norm.weight is None:
        return Struct(kernels.NORM.pack(1, 0, 0, norm.eps), [])
    weight = norm.weight.detach()
    bias = norm.bias.detach() if norm.bias is not None else torch.zeros_like(weight)
    return Struct(kernels.NORM.pack(1, weight.data_ptr(), bias.data_ptr(), norm.eps), [weight, bias])


def served_norm(norm: nn.Module | None, channels: int) -> bool:
    """Whether a norm is one that the kernels compute."""
    if norm is None:
        return True
    plain = isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (channels,)
    return plain and (norm.weight is None or norm.weight.dtype == torch.float32)


def gain_of(layer: nn.Module | None) -> Tensor | None:
    """A LayerScale's factors."""
    gamma = getattr(layer, "gamma", None)
    return None if gamma is None else gamma.detach()


def one_bit(layer: nn.Module) -> bool:
    """Whether a layer multiplies bits by bits in a way the kernels know."""
    if not isinstance(layer, PackedLinear) or layer.zero_weights is not None:
        return False
    return not layer.float_inputs and layer.in_features <= kernels.MOST_INPUTS


def served_attention(attn: nn.Module) -> bool:
    """Whether the kernels compute this attention: signs of q, k and v, and scores by a threshold."""
    if not isinstance(attn, BinaryAttention) or not hasattr(attn, "qkv"):
        return False
    signs = all(type(layer) is Sign for layer in (attn.binarize_q, attn.binarize_k, attn.binarize_v))
    scores = isinstance(attn.scores, (SoftmaxAware, BoolScores, NaiveScores))
    return signs and scores and one_bit(attn.qkv) and one_bit(attn.proj)


def underflows(attn: Any, mask: object) -> bool:
    """Whether scores depend on what a softmax rounds to 0, which only the softmax itself can say."""
    return mask is not None and isinstance(attn.scores, NaiveScores)


def served_mlp(mlp: nn.Module) -> bool:
    """Whether the kernels compute this MLP: one bit all through, and the exact GELU."""
    if not isinstance(mlp, BinaryMlp) or not one_bit(mlp.fc1) or not one_bit(mlp.fc2):
        return False
    return isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"


def attention_bytes(
    attn: Any, windows: int, tokens: int, places: Tensor | None, bias: Tensor | None, mask: Tensor | None
) -> Struct:
    """The attention of a window for the kernels. bias (H, N, N), mask (windows, N, N), places (windows, N) int32."""
    width, scores = attn.head_dim, attn.scores
    relative, threshold, log_beta = 0, width - 1, 0.0  # bool: dot > 0
    if isinstance(scores, NaiveScores):
        relative, threshold, log_beta = 1, 4 * width, -math.inf
    elif isinstance(scores, SoftmaxAware):
        relative, threshold, log_beta = 1, dot_margin(width, scores.beta), math.log(scores.beta)
    padded = -(-tokens // 64) * 64
    alive = [None if part is None else F.pad(part.detach().float(), (0, padded - tokens)).contiguous()
             for part in (bias, mask)]  # fmt: skip
    pointers = [0 if part is None else part.data_ptr() for part in (places, *alive)]
    plus = int(sign_rule(attn) == "plus")
    numbers = (attn.num_heads, width, tokens, windows, *pointers, relative, threshold, plus, attn.scale, log_beta)
    return Struct(kernels.ATTENTION.pack(*numbers), [places, *alive])


def sign_rule(attn: BinaryAttention) -> ZeroRule:
    """The zero rule of q, k and v."""
    layer = attn.binarize_q
    return "plus" if isinstance(layer, Sign) and layer.zero == "plus" else "exact"


def heads_fastest(attn: nn.Module) -> Tensor | None:
    """The order of proj's inputs: NesT joins heads with their index fastest, the kernels one after the other."""
    if not isinstance(attn, BlockAttention):
        return None
    return torch.arange(attn.num_heads * attn.head_dim).view(attn.head_dim, attn.num_heads).T.flatten()


def packed_attention(q: Tensor, k: Tensor, v: Tensor, beta: float = BETA) -> Tensor:
    """Sums of the active values from the signs of q, k, v (B, H, N, d): the same shape; exact zeros count as 0."""
    native, width = serving(q), q.shape[-1]
    if native is None:
        q, k, v = q.sign(), k.sign(), v.sign()
        return active_keys(q @ k.mT, width, beta).to(v.dtype) @ v
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    data = _products(width, q.shape[-2], beta)
    pairs, pointers = q.shape[0] * q.shape[1], [part.data_ptr() for part in (q, k, v, out)]
    native.attention(data, *pointers, pairs, native.number, torch.get_num_threads())
    return out


@functools.cache
def _products(width: int, tokens: int, beta: float) -> bytes:
    numbers = (1, width, tokens, 1, 0, 0, 0, 1, dot_margin(width, beta), 0, width**-0.5, math.log(beta))
    return kernels.ATTENTION.pack(*numbers)


def block_struct(
    tier: str,
    attn: BinaryAttention | None,
    inside: Struct | None,
    mlp: BinaryMlp | None,
    norms: tuple[nn.Module | None, nn.Module | None] = (None, None),
    gains: tuple[Tensor | None, Tensor | None] = (None, None),
    residual: bool = False,
) -> Struct:
    """A block, or a part of one, for the kernels."""
    parts = [Struct(int(residual).to_bytes(8, "little"), []), norm_struct(norms[0])]
    if attn is None or inside is None:
        parts += [Struct(kernels.NO_LINEAR + kernels.NO_ATTENTION + kernels.NO_LINEAR, [])]
    else:
        assert isinstance(attn.qkv, PackedLinear) and isinstance(attn.proj, PackedLinear)
        qkv = linear_struct(attn.qkv, tier, (sign_rule(attn), False))
        parts += [qkv, inside, linear_struct(attn.proj, tier, None, gains[0], heads_fastest(attn))]
    parts.append(norm_struct(norms[1]))
    if mlp is None:
        parts.append(Struct(2 * kernels.NO_LINEAR, []))
    else:
        assert isinstance(mlp.fc1, PackedLinear) and isinstance(mlp.fc2, PackedLinear)
        fc1 = linear_struct(mlp.fc1, tier, (mlp.fc2.zero, True))
        parts += [fc1, linear_struct(mlp.fc2, tier, None, gains[1])]
    return Struct(b"".join(part.data for part in parts), [part.alive for part in parts])


def run_block(native: Kernels, struct: Struct, x: Tensor, images: int) -> Tensor:
    """x (images, tokens, C) of any shape in between -> the same shape."""
    x = x.contiguous()
    out = torch.empty_like(x)
    tokens = x.numel() // (images * x.shape[-1])
    native.block(struct.data, x.data_ptr(), out.data_ptr(), images, tokens, native.number, torch.get_num_threads())
    return out
