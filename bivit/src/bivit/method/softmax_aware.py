"""Softmax-aware binarization (section 3.2): attention scores of one bit, a threshold per row.

A row a of softmax scores is approximated by v * b with b in {0, 1}^n (equation 6). The best b is found by coordinate
descent (algorithm 1); its threshold T* is nearly proportional to the row's maximum, so

    b = 1 where a >= T,   T = beta * max(a),   beta = 0.25          (equations 9 to 11)

and v is dropped. The gradient goes to the softmax unchanged (equation 13), T has none.

Shapes: B batch, H heads, N queries, M keys.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from paperkit.errors import UserError

BETA = 0.25
Backward = Literal["softmax", "direct"]


class _Direct(torch.autograd.Function):
    """The backward rule of the released class by itself, BiBERT's: straight to the logits, cut where |l| >= 1."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, binary: Tensor) -> Tensor:
        ctx.save_for_backward(logits.abs() >= 1)
        return binary.view_as(binary)

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple[Tensor, None]:
        (outside,) = ctx.saved_tensors
        return cotangent[0].masked_fill(outside, 0), None


def past_softmax(logits: Tensor, binary: Tensor) -> Tensor:
    """`binary` with the gradient straight to the logits, where |logit| < 1 (equation 12); NaN stays NaN."""
    binary = binary.masked_fill(logits.detach().isnan(), torch.nan)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _Direct.apply(logits, binary)
    return binary


def through_softmax(scores: Tensor, binary: Tensor) -> Tensor:
    """`binary` with the gradient of `scores`. (b - p) + p is exactly b in round-to-nearest; NaN scores stay NaN."""
    return (binary - scores).detach() + scores


def threshold(scores: Tensor, beta: float = BETA) -> Tensor:
    """T = beta * max: (..., N, M) -> (..., N, 1), without a gradient."""
    return beta * scores.detach().amax(-1, keepdim=True)


def binarize_scores(scores: Tensor, beta: float = BETA) -> Tensor:
    """b of softmax scores, 0 or 1; the largest score of a row is always active. (..., N, M), dtype kept."""
    return (scores >= threshold(scores, beta)).to(scores.dtype)


class SoftmaxAware(nn.Module):
    """SAB on logits.

    Args:
        beta: share of the row's maximum that a score needs; 0.25 is a shift by two bits.
        backward: "softmax" through the softmax (equation 13), "direct" past it (the variant with a dagger in table 5).

    Raises:
        UserError: beta outside (0, 1], or a backward form that does not exist.

    Example:
        >>> SoftmaxAware()(torch.tensor([[[[2.0, 1.0, 0.0]]]]))
        tensor([[[[1., 1., 0.]]]])
    """

    def __init__(self, beta: float = BETA, backward: Backward = "softmax") -> None:
        super().__init__()
        if not 0 < beta <= 1:
            raise UserError(f"beta {beta} is outside (0, 1]: it is a share of the row's largest score")
        if backward not in get_args(Backward):
            raise UserError(f"backward '{backward}' does not exist; known: {', '.join(get_args(Backward))}")
        self.beta, self.backward_form = beta, backward

    def forward(self, logits: Tensor) -> Tensor:
        """(B, H, N, M) -> 0 or 1 of the same shape."""
        scores = logits.softmax(-1)
        binary = binarize_scores(scores.detach(), self.beta)
        return through_softmax(scores, binary) if self.backward_form == "softmax" else past_softmax(logits, binary)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, backward={self.backward_form}"


def hamming_margin(head_dim: int, beta: float = BETA) -> int:
    """How much farther than the nearest key an active key may be, in differing bits.

    a >= beta * max(a) is l >= max(l) + ln(beta), and l = (d - 2h) / sqrt(d): no exponential is needed. That holds
    where all of q and k is +-1 and nothing is added to the logits.
    """
    return math.floor(-math.log(beta) * math.sqrt(head_dim) / 2)


@dataclass(frozen=True)
class Optimum:
    """Algorithm 1's result for rows (..., N, M).

    Attributes:
        scales: v after every round (rounds, ..., N, 1). threshold: T* = v / 2 (..., N, 1).
        binary: b (..., N, M). error: |a - v b|^2 of a row (..., N).
    """

    scales: Tensor
    threshold: Tensor
    binary: Tensor
    error: Tensor


def best_scale(scores: Tensor, binary: Tensor) -> Tensor:
    """v* = a.b / b.b, the mean of the active scores (equation 7), 0 without one: (..., N, 1)."""
    return (scores * binary).sum(-1, keepdim=True) / binary.sum(-1, keepdim=True).clamp(min=1)


def squared_error(scores: Tensor, binary: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """|a - v b|^2 of every row: (..., N)."""
    return (scores - scale * binary).square().sum(-1)


def optimal_binary(scores: Tensor, rounds: int = 5) -> Optimum:
    """Algorithm 1: coordinate descent from b = sign(a) = all ones.

    Raises:
        UserError: no round.
    """
    if rounds < 1:
        raise UserError(f"algorithm 1 needs at least one round, not {rounds}")
    binary, scales = torch.ones_like(scores), []
    for _ in range(rounds):
        scales.append(best_scale(scores, binary))
        binary = (scores >= scales[-1] / 2).to(scores.dtype)
    return Optimum(torch.stack(scales), scales[-1] / 2, binary, squared_error(scores, binary, scales[-1]))


def fitted_beta(scores: Tensor, rounds: int = 5) -> float:
    """The slope of T* on the row's maximum, a regression without intercept (0.25 for NesT-T on ImageNet)."""
    largest, best = scores.amax(-1, keepdim=True), optimal_binary(scores, rounds).threshold
    return float((largest * best).sum() / largest.square().sum())
