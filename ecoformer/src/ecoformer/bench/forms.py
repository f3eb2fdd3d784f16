"""What is raced: attentions from unnormalised vectors to the output, and hash fits, each in the form that a user meets.

Shapes: B batch, H heads, N tokens, C head width, m supports, b bits, F features.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ecoformer.method.fused_attention import fused_attention
from ecoformer.method.fused_attention_native import native_attention
from ecoformer.method.hash_fit import FitOptions, fit_hash
from ecoformer.method.kernel_hash import normalise
from ecoformer.method.performer import favor_attention, feature_count, orthogonal_features
from ecoformer.method.similarity import PairLabels
from ecoformer.method.softmax_attention import softmax_attention, split_heads

BITS, SUPPORTS = 16, 25
ECO, COMPILED, EAGER, SDPA, EXPLICIT, PERFORMER, ELU, RELEASED, READING = (
    *("EcoFormer", "EcoFormer, torch.compile", "EcoFormer, not compiled", "softmax, SDPA", "softmax, explicit"),
    *("Performer", "elu linear attention", "released, op by op", "one reading of qk and v"),
)
ECO_HALF, SDPA_HALF = "EcoFormer on bfloat16", "softmax, SDPA on bfloat16"
LARGEST_MAP = 1 << 30
"""Bytes of the explicit map from which on it is not raced."""
Steps = dict[str, Callable[[], object]]


def elu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention with elu(x) + 1 for features (Katharopoulos et al., ICML 2020)."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.mT @ v)) / (q @ k.sum(-2)[..., None])


def released_attention(qk: Tensor, v: Tensor, anchor: Tensor, mvec: Tensor, A: Tensor, bias: float) -> Tensor:
    """The released module's forward pass operation by operation: differences of N m C numbers, einsum products."""
    u = qk / qk.norm(dim=-1, keepdim=True)
    sq_dist = (u[:, :, :, None] - anchor[:, :, None]).pow(2).sum(-1)
    sigma = sq_dist.mean(-1).mean(-1)
    kernel = torch.exp(-sq_dist / (2 * sigma[..., None, None])) - mvec
    codes = torch.sign(torch.einsum("bhnm,hkm->bhnk", kernel, A))
    denominator = torch.einsum("bhnd,bhd->bhn", codes, codes.sum(-2)) + qk.shape[2] * bias
    context = torch.einsum("bhnd,bhne->bhde", codes, v)
    out = torch.einsum("bhde,bhnd->bhne", context, codes) + bias * v
    return torch.einsum("bhne,bhn->bhne", out, 1 / denominator)


def fastest_form(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What a fused network runs on a CPU: the kernel in C++, and `plain` where it does not serve."""

    def form(*arguments: Any) -> Tensor:
        out = native_attention(*arguments)
        return plain(*arguments) if out is None else out

    return form


def attention_inputs(
    tokens: int, width: int, heads: int = 1
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, float]]:
    """qk and v (1, H, N, C), in memory as a layer's projections leave them, and a hash.

    The hash: supports out of the tokens, their kernel's mean, a random projection.
    """
    generator = torch.Generator().manual_seed(0)
    qk, v = (split_heads(torch.randn(1, tokens, heads * width, generator=generator), heads) for _ in range(2))
    start = torch.randn(heads, BITS, SUPPORTS, generator=generator)
    fit = fit_hash(normalise(qk[:, :, :196]), start, FitOptions("random"), generator=generator)
    return qk, v, (fit.anchor, fit.mvec, fit.A, BITS + 1.0)


def attention_steps(
    tokens: int, width: int, heads: int = 1, half: bool = False, compile_them: bool = True
) -> tuple[Callable[[], object], Steps]:
    """EcoFormer's step, and those of its rivals by name. The linear forms are compiled for the very shape.

    Args:
        half: with SDPA and EcoFormer on bfloat16 as well.
    """
    qk, v, fitted = attention_inputs(tokens, width, heads)
    projection = orthogonal_features(feature_count(width), width, torch.Generator().manual_seed(1))
    compiled = partial(torch.compile, dynamic=False) if compile_them else (lambda form: form)
    eco, elu, favor = (compiled(form) for form in (fused_attention, elu_attention, favor_attention))
    steps: Steps = {
        SDPA: partial(softmax_attention, qk, qk, v, backend="sdpa"),
        EXPLICIT: partial(softmax_attention, qk, qk, v, backend="explicit"),
        PERFORMER: partial(favor, qk, qk, v, projection),
        ELU: partial(elu, qk, qk, v),
        RELEASED: partial(released_attention, qk, v, *fitted),
        COMPILED: partial(eco, qk, v, *fitted),
        EAGER: partial(fused_attention, qk, v, *fitted),
        READING: lambda: (qk.sum(), v.sum()),
    }
    if heads * tokens**2 * 4 > LARGEST_MAP:
        del steps[EXPLICIT]
    if half:
        low, values = qk.bfloat16(), v.bfloat16()
        steps[SDPA_HALF] = partial(softmax_attention, low, low, values, backend="sdpa")
        steps[ECO_HALF] = lambda: fastest_form(eco)(low.float(), values.float(), *fitted).to(low.dtype)
    return partial(fastest_form(eco), qk, v, *fitted), steps


def dense_fit(kernel: Tensor, labels: PairLabels, A: Tensor, options: FitOptions) -> Tensor:
    """The released fit as it is written there: dense residual N x N, gradients by autograd, torch's SGD. Returns A."""
    (_, bits, _), tokens = A.shape, kernel.shape[2]
    A, residual = A.clone(), bits * labels.dense().to(kernel.dtype)

    def loss_of(y: Tensor) -> Tensor:
        return (-torch.einsum("bhn,bhnm,bhm->bh", y, residual, y) / (tokens * bits)).mean()

    for r in range(bits):
        a = A[:, r].clone().requires_grad_()
        optimizer = torch.optim.SGD([a], lr=options.step, momentum=options.momentum, nesterov=options.nesterov)
        for _ in range(options.iterations):
            loss = loss_of(2 / (1 + torch.exp(-torch.einsum("bhnm,hm->bhn", kernel, a))) - 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            old, new = (
                torch.where(torch.einsum("bhnm,hm->bhn", kernel, x) > 0, 1.0, -1.0).to(kernel.dtype)
                for x in (A[:, r], a)
            )
            taken = bool(loss_of(new) < loss_of(old))
            A[:, r] = a.detach() if taken else A[:, r]
            y = new if taken else old
            residual = residual - y[..., :, None] * y[..., None, :]
    return A
