"""EcoFormer's attention in one piece for inference: from unnormalised query-key vectors and values to the output.

The same numbers as `KernelHash` and `linear_attention`, written so that a compiler needs few passes over the tokens:
normalised vectors are never stored (|u|^2 is 1, and u . a = (qk . a) / |qk|), and sums and counts ride along. A fused
layer takes the kernels of `fused_attention_triton` on CUDA and of `fused_attention_native` on a CPU where they serve,
else this under `torch.compile`; without a compiler it runs as it stands.

Shapes: B batch, H heads, N tokens, C head width, m supports, b bits.
"""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.method.attention import EcoFormerAttention
from ecoformer.method.fused_attention_native import native_attention
from ecoformer.method.kernel_hash import TINY
from ecoformer.method.softmax_attention import join_heads, split_heads
from paperkit.errors import UserError

Form = Callable[..., Tensor]


def fused_attention(
    qk: Tensor, v: Tensor, anchor: Tensor, mvec: Tensor, A: Tensor, bias: float, mode: str = "released"
) -> Tensor:
    """Query-key vectors and values (B, H, N, C) to (B, H, N, C), in float32; hashing included.

    A NaN or an infinity in a head of qk makes that head's output NaN.

    Args:
        anchor, mvec, A: of a fitted `KernelHash`. bias: c. mode: "released" or "global".
    """
    kind, qk, v = v.dtype, qk.float(), v.float()
    length = qk.square().sum(-1, keepdim=True).sqrt()
    zero = length <= TINY
    dots = (qk @ anchor.mT) * torch.where(zero, 0.0, 1 / length)
    sq_dist = torch.where(zero, 0.0, 1.0) + anchor.square().sum(-1)[..., None, :] - 2 * dots  # (B, H, N, m)
    sigma = sq_dist.mean((-1, -2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    codes = torch.sign((torch.exp(sq_dist * (-0.5 / sigma)) - mvec) @ A.mT)
    context = codes.mT @ v  # (B, H, b, C)
    everyone = qk.shape[-2] * bias + 0 * sigma  # sigma is NaN where a token is, and the sign of a NaN would be 0
    denominator = codes @ codes.sum(-2)[..., None] + everyone
    own = v if mode == "released" else v.sum(-2, keepdim=True)
    return ((codes @ context + bias * own) / denominator).to(kind)


@functools.cache
def compiled_attention() -> Form:
    """`fused_attention` compiled, or as it stands where nothing can be compiled (no C++ compiler); with a warning."""
    compiled = torch.compile(fused_attention)
    try:
        with torch.inference_mode():
            tokens, supports = torch.ones(1, 1, 3, 4), torch.ones(1, 1, 2, 4)
            compiled(tokens, tokens, supports, torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 2), 2.0)
    except Exception as error:  # whatever a compiler chain may raise
        warnings.warn(f"torch.compile does not work here ({type(error).__name__}); attention stays eager", stacklevel=2)
        return fused_attention
    return compiled


def by_compiler(*arguments: Any) -> Tensor:
    """`fused_attention`, compiled when it is first called for, and as it stands under a compiler or an exporter."""
    form = fused_attention if torch.compiler.is_compiling() else compiled_attention()
    return form(*arguments)


class FusedAttention(nn.Module):
    """A fitted `EcoFormerAttention` for inference, no masks, not causal. The same weights, keys and results.

    Args:
        layer: whose modules it shares. form: `fused_attention` or `by_compiler`, where no kernel serves.
    """

    def __init__(self, layer: EcoFormerAttention, form: Form) -> None:
        super().__init__()
        if layer.causal or layer.fast_attention.power != 1:
            raise UserError("the fused form is neither causal nor a power of the similarity; leave that layer as it is")
        if not layer.ksh.is_fitted:
            raise UserError(f"the hash of {layer.name or 'an EcoFormer layer'} was never fitted; fit it, then fuse")
        self.to_qk, self.to_v, self.proj = layer.to_qk, layer.to_v, layer.proj
        self.fast_attention, self.num_heads, self.form = layer.fast_attention, layer.num_heads, form

    def forward(self, x: Tensor, size: Any = None) -> Tensor:
        """(B, N, D) -> (B, N, D); the grid `size` plays no role here."""
        qk, v = (split_heads(layer(x), self.num_heads) for layer in (self.to_qk, self.to_v))
        binary = self.fast_attention
        ksh, out = binary.ksh, binary.by_kernels(qk, v)
        hash_ = ksh.anchor, ksh.mvec, ksh.A, binary.bias, binary.bias_mode
        if out is None:
            out = native_attention(qk.float(), v.float(), *hash_)
        if out is None:
            out = self.form(qk, v, *hash_)
        return self.proj(join_heads(out).to(x.dtype))


def fuse(model: nn.Module, compiled: bool = True) -> nn.Module:
    """A copy of a fitted network for inference, whose EcoFormer layers are fused.

    Raises:
        UserError: a layer that is not fitted or has no fused form; with its name.
    """
    model = copy.deepcopy(model).eval()
    form = by_compiler if compiled else fused_attention
    for name, module in list(model.named_modules()):
        if isinstance(module, EcoFormerAttention):
            module.name = module.name or name
            fused = FusedAttention(module, form)
            if not name:  # the model is such a layer
                return fused
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, fused)
    return model
