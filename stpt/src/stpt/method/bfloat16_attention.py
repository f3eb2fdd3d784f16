"""Attention in bfloat16 by plain products, where a CPU has instructions for them and no gradient is asked for.

Torch's fused attention on CPUs takes as long in bfloat16 as in float32. Two products and a softmax, a few heads at a
time so that their scores stay in the cache, took 0.33 to 0.4 of its time on the backbone's shapes (one thread of a
Zen 5). Scores are rounded to bfloat16 before the softmax, which the fused form does after it.

Shapes: B batch, h heads, N queries, M keys, d channels of a head.
"""

import torch
from torch import Tensor

SCORES = 1 << 20
"""Computed at a time: two megabytes."""
_HAS_PRODUCTS = torch.backends.mkldnn.is_available() and any(
    getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
)


def by_products(q: Tensor) -> bool:
    """Whether attention of these queries is left to `attend`."""
    return (
        _HAS_PRODUCTS
        and q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v. q (B, h, N, d), k and v (B, h, M, d) -> (B, h, N, d)."""
    step = max(1, SCORES // (q.shape[2] * k.shape[2]))
    parts = ((x.flatten(0, 1)).split(step) for x in (q * q.shape[3] ** -0.5, k, v))
    pieces = [torch.bmm(torch.bmm(some, keys.mT).softmax(2), values) for some, keys, values in zip(*parts, strict=True)]
    return torch.cat(pieces).view(q.shape)
