"""BiT's elastic binarization (Liu et al., NeurIPS 2022, section 3.2): a learned scale alpha, and a shift before it.

Signed: `alpha * sign(x)`. Not signed (probabilities, values after ReLU): `alpha * clip(round(x / alpha), 0, 1)`, so the
threshold is alpha / 2, and exactly half is 0. alpha is one number per tensor, at least 1e-5, and starts at 2 (signed)
or 4 times the mean of |x| of the first batch. Its gradient is divided by the root of the number of entries.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from bivit.method.sign import plain_sign

FLOOR = 1e-5
"""The least alpha."""


class _Elastic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, signed: bool) -> Tensor:
        ctx.signed = signed
        alpha = alpha.clamp(min=FLOOR)
        ctx.save_for_backward(x, alpha)
        return elastic_forward(x, alpha, signed)

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = cotangent
        x, alpha = ctx.saved_tensors
        ratio = x / alpha
        if ctx.signed:
            inside = ratio.abs() <= 1
            of_alpha = x.sign()
        else:
            inside = (ratio >= 0) & (ratio <= 1)
            of_alpha = torch.where(ratio > 1, 1.0, torch.where(inside, ratio.round() - ratio, 0.0))
        d_alpha = (g * of_alpha).sum().reshape(alpha.shape) / x.numel() ** 0.5
        return torch.where(inside, g, 0), d_alpha.to(alpha.dtype), None


def elastic_forward(x: Tensor, alpha: Tensor, signed: bool) -> Tensor:
    """Two-valued x, without a gradient rule."""
    alpha = alpha.clamp(min=FLOOR)
    return alpha * (plain_sign(x) if signed else (x / alpha).round().clamp(0, 1))


def initial_alpha(x: Tensor, signed: bool) -> Tensor:
    """alpha [1] from a batch: 2 (signed) or 4 times the mean of |x|."""
    return ((2 if signed else 4) * x.detach().abs().mean()).reshape(1).clamp(min=FLOOR)


class Elastic(nn.Module):
    """One elastic quantiser.

    Args:
        signed: two values +-alpha, else 0 and alpha.
        shift: channels of the learned shift that is added first (`move` in BiT, zeros at the start); 0 for none.

    alpha is 1 until the first forward pass sets it. Whether it did is in the state (`ready`), so that a checkpoint
    never starts anew.
    """

    ready: Tensor

    def __init__(self, signed: bool = True, shift: int = 0) -> None:
        super().__init__()
        self.signed = signed
        self.alpha = nn.Parameter(torch.ones(1))
        self.move = nn.Parameter(torch.zeros(shift)) if shift else None
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.started = False

    def start(self, x: Tensor) -> None:
        """Sets alpha from what the quantiser would see; the mean over all processes, which then stay equal."""
        alpha = initial_alpha(x, self.signed).to(self.alpha.dtype)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(alpha)
            alpha /= distributed.get_world_size()
        with torch.no_grad():
            self.alpha.copy_(alpha)
            self.ready.fill_(True)
        self.started = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.started = False

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        x = x if self.move is None else x + self.move
        if not self.started and not torch.compiler.is_compiling() and not self.ready.is_meta:
            self.started = bool(self.ready)
            if not self.started:
                self.start(x)
        alpha = self.alpha.to(x.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or alpha.requires_grad):
            return _Elastic.apply(x, alpha, self.signed)
        return elastic_forward(x, alpha, self.signed)

    def extra_repr(self) -> str:
        return f"signed={self.signed}, shift={self.move is not None}"
