"""The kernelised hash: tokens to short codes of -1 and +1 (paper section 3.2; after KSH, Liu et al., CVPR 2012).

Shapes: B batch, H heads, N tokens, C head width, m supports, b bits.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paperkit.errors import UserError

TINY = 1e-18
"""Vectors shorter than this are left as they are: a zero token has no direction, and 0/0 would be NaN."""


def normalise(x: Tensor) -> Tensor:
    """`x / |x|` over the last axis, in float32 at least; a zero vector stays zero and gets a finite gradient."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > TINY, norm, 1.0)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off where it is on: a code must not depend on the precision of a matrix product."""
    kind = x.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


class _SignStraightThrough(torch.autograd.Function):
    """`sign` forward; backward the gradient passes where -1 < x < 1 and is cut elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # one output, one gradient
        (x,) = ctx.saved_tensors
        return gradients[0] * ((x < 1) & (x > -1))


def sign_straight_through(x: Tensor) -> Tensor:
    """-1, 0 or +1 (0 only at 0), with the released code's gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _SignStraightThrough.apply(x)
    return torch.sign(x)


class Hashing(NamedTuple):
    """What a hash computes on its way: squared distances (B, H, N, m), sigma, the centred kernel, `pre`, the codes.

    sigma is (B, H), in the causal form (B, H, N). `pre` and the codes are (B, H, N, b).
    """

    sq_dist: Tensor
    sigma: Tensor
    kernel: Tensor
    pre: Tensor
    codes: Tensor


def squared_distances(u: Tensor, anchor: Tensor) -> Tensor:
    """|u - a|^2 by one matrix product: (B, H, N, C), (1, H, m, C) -> (B, H, N, m).

    The released code subtracts first, which makes a tensor of N m C numbers.
    """
    lengths_u, lengths_a = u.square().sum(-1, keepdim=True), anchor.square().sum(-1)[..., None, :]
    return lengths_u + lengths_a - 2 * (u @ anchor.mT)


def bandwidth(u: Tensor, anchor: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """sigma = the mean of the squared distances over supports and tokens, from token means alone.

    mean |u - a|^2 = mean |u|^2 + mean |a|^2 - 2 mean(u) . mean(a).

    Args:
        u: (B, H, N, C). anchor: (1, H, m, C).
        mask: (B, N), True for a token, False for padding, which counts nowhere.
        causal: for token i the mean over the tokens up to i: none of the future enters.

    Returns:
        (B, H); causal (B, H, N).
    """
    lengths, centre = u.square().sum(-1), anchor.mean(-2)
    base = anchor.square().sum(-1).mean(-1)  # (1, H)
    if mask is None and not causal:
        return lengths.mean(-1) + base - 2 * (u.mean(-2) * centre).sum(-1)
    real = torch.ones_like(lengths[:, :1]) if mask is None else mask[:, None].to(lengths.dtype)  # (B, 1, N)
    dots = (u @ centre[..., None]).squeeze(-1)  # (B, H, N)
    each = (lengths - 2 * dots) * real
    if causal:
        return each.cumsum(-1) / real.cumsum(-1).clamp_min(1) + base[..., None]
    return each.sum(-1) / real.sum(-1).clamp_min(1) + base


def kernel_values(sq_dist: Tensor, sigma: Tensor) -> Tensor:
    """K = exp(-d / (2 sigma)): (B, H, N, m). sigma is variance-like: it is not squared."""
    sigma = sigma[..., None] if sigma.dim() == 3 else sigma[..., None, None]
    return torch.exp(-sq_dist / (2 * sigma.clamp_min(torch.finfo(sigma.dtype).tiny)))


class KernelHash(nn.Module):
    """h(u) = sign(A (K(u) - mvec)), K by a Gaussian kernel against m supports (released class `KernelSH`).

    Supports and mean come from a fit (`ecoformer.method.hash_fit`) and not from back-propagation. sigma is computed
    anew at every call, from the tokens of that call, and gradients pass through it.

    Args:
        heads, head_dim: H and C.
        nbits: b; any number from 1 on, odd ones too.
        supports: m.
        trainable: let back-propagation change A (an extension; the released hash keeps it).

    Buffers (keys of the released files): A (H, b, m), mvec (1, H, 1, m), anchor (1, H, m, C); ours besides: fitted.

    Raises:
        UserError: fewer than one bit or support.
    """

    def __init__(self, heads: int, head_dim: int, nbits: int = 16, supports: int = 25, trainable: bool = False) -> None:
        super().__init__()
        if any(type(count) is not int or count < 1 for count in (nbits, supports)):
            raise UserError(
                f"a hash of {nbits} bits over {supports} supports cannot be: both are whole numbers, 1 at least"
            )
        self.heads, self.head_dim, self.nbits, self.supports = heads, head_dim, nbits, supports
        start = torch.randn(heads, nbits, supports)
        if trainable:
            self.A = nn.Parameter(start)
        else:
            self.register_buffer("A", start)
        self.register_buffer("mvec", torch.zeros(1, heads, 1, supports))
        self.register_buffer("anchor", torch.zeros(1, heads, supports, head_dim))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.is_fitted = False  # the buffer's value without asking a device for it

    A: Tensor
    mvec: Tensor
    anchor: Tensor
    fitted: Tensor

    def forward(self, u: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Codes (B, H, N, b) of normalised tokens (B, H, N, C); those of padding are 0.

        Args:
            mask: (B, N), True for a token. causal: sigma of token i from the tokens up to i.
        """
        return self.steps(u, mask, causal).codes

    def steps(self, u: Tensor, mask: Tensor | None = None, causal: bool = False) -> Hashing:
        """As `forward`, with everything on the way."""
        with full_precision(u):
            anchor, mvec, A = (t.to(u.dtype) for t in (self.anchor, self.mvec, self.A))  # a model in half precision
            sq_dist = squared_distances(u, anchor)
            sigma = bandwidth(u, anchor, mask, causal)
            kernel = kernel_values(sq_dist, sigma) - mvec
            pre = kernel @ A.mT
            broken = 0 * sigma.detach()  # NaN where a token is not finite, which `sign` would turn into 0
            codes = sign_straight_through(pre) + (broken[..., None] if causal else broken[..., None, None])
            if mask is not None:
                codes = codes * mask[:, None, :, None]
        return Hashing(sq_dist, sigma, kernel, pre, codes)

    @torch.no_grad()
    def set_fit(self, A: Tensor, mvec: Tensor, anchor: Tensor) -> None:
        """Takes the result of a fit."""
        self.A.copy_(A)
        self.mvec.copy_(mvec)
        self.anchor.copy_(anchor)
        self.mark_fitted(True)

    def mark_fitted(self, fitted: bool) -> None:
        """Says that the hash holds a fit, or that the next training batch is to make one (from what it holds)."""
        self.fitted.fill_(fitted)
        self.is_fitted = fitted

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}fitted" not in state_dict and f"{prefix}anchor" in state_dict:
            state_dict[f"{prefix}fitted"] = holds_a_fit(state_dict[f"{prefix}anchor"])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if f"{prefix}fitted" in state_dict:
            self.is_fitted = bool(state_dict[f"{prefix}fitted"])

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"heads={self.heads}, head_dim={self.head_dim}, nbits={self.nbits}, supports={self.supports}"


def holds_a_fit(anchor: Tensor) -> Tensor:
    """Whether supports of a released file come from a fit: they start as zeros. The files do not say it themselves."""
    return (anchor != 0).any()


def hashes(model: nn.Module) -> Iterable[tuple[str, KernelHash]]:
    """Every hash of a model with its name, in order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, KernelHash))
