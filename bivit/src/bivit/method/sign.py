"""The sign of a number as one bit, and the gradients that stand in for its derivative (section 3.1).

`sign` is 0 almost everywhere in its derivative. Each straight-through rule lets the gradient pass inside a window:
"ste" where -1 < x < 1 (BiViT; exactly +-1 is cut), "clamp" where -1 <= x <= 1 (BiBERT), "bireal" scaled by 2 - 2|x|
where |x| < 1 (Bi-Real Net), "identity" everywhere (BiT's weights).

Zero rules: "ternary" is torch's sign(0) = 0, the released form; "plus" is sign(0) = +1, which one bit can hold.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from paperkit.errors import UserError

Zero = Literal["ternary", "plus"]
Gradient = Literal["ste", "clamp", "bireal", "identity"]


class _Sign(torch.autograd.Function):
    """sign(x) with one of the gradients above; keeps the mask of what is cut, or x for "bireal"."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Gradient, zero: Zero) -> Tensor:
        ctx.gradient = gradient
        if gradient == "bireal":
            ctx.save_for_backward(x)
        elif gradient != "identity":
            ctx.save_for_backward(x.abs() >= 1 if gradient == "ste" else x.abs() > 1)
        return plain_sign(x, zero)

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple[Tensor, None, None]:
        (g,) = cotangent
        if ctx.gradient == "identity":
            return g, None, None
        (kept,) = ctx.saved_tensors
        if ctx.gradient == "bireal":
            return g * (2 - 2 * kept.abs()).clamp(min=0), None, None
        return g.masked_fill(kept, 0), None, None


def plain_sign(x: Tensor, zero: Zero = "ternary") -> Tensor:
    """Signs of x, same shape and dtype: -1, +1, and 0 for 0 as `zero` says. NaN stays NaN (torch's sign makes it 0)."""
    signs = x.sign() if zero == "ternary" else torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    return signs.masked_fill(x.isnan(), torch.nan)


def sign(x: Tensor, gradient: Gradient = "ste", zero: Zero = "ternary") -> Tensor:
    """Signs of x with a straight-through gradient (`BinaryQuantizer` of the released code with the defaults)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Sign.apply(x, gradient, zero)
    return plain_sign(x, zero)


class Sign(nn.Module):
    """`sign` as a layer, in front of a product.

    Raises:
        UserError: a gradient or zero rule that does not exist.
    """

    def __init__(self, gradient: Gradient = "ste", zero: Zero = "ternary") -> None:
        super().__init__()
        for name, value, known in (("gradient", gradient, Gradient), ("zero rule", zero, Zero)):
            if value not in get_args(known):
                raise UserError(f"{name} '{value}' does not exist; known: {', '.join(get_args(known))}")
        self.gradient, self.zero = gradient, zero

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return sign(x, self.gradient, self.zero)

    def extra_repr(self) -> str:
        return f"gradient={self.gradient}, zero={self.zero}"
