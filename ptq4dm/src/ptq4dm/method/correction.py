"""The corrected sampling step as plain functions of numbers (section 7 of the method).

Notation: `alpha` is the cumulative product of `1 - beta` at a step, `alpha_prev` at the step that follows in sampling,
`sigma` the noise that the sampler adds, `eps` the noise prediction. A DDIM step (Song et al., equation 12) is

    x_prev = sqrt(alpha_prev) * x0 + sqrt(1 - alpha_prev - sigma^2) * eps + sigma * z.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paperkit.errors import UserError
from ptq4dm.method.noise_statistics import NoiseStatistics

Correction = Literal["official", "joint", "wiener"]
"""`official`: the paper's. Ours: `joint` removes the whole regression line of each channel (signed slope, intercept);
`wiener` regresses the float prediction on the quantised one, which has the least squared error but shrinks it."""
CORRECTIONS = ("official", "joint", "wiener")
DirectionSigma = Literal["calibrated", "scheduled"]
"""Which sigma the direction term takes: the reduced one, as in the authors' code, or the sampler's own, which keeps the
float sampler's marginal variance (see `ptq4dm.method.gaussian_check`)."""
DIRECTIONS = ("calibrated", "scheduled")


def sampled_steps(steps: int, training_steps: int = 1000) -> list[int]:
    """The authors' sampled time steps, ascending: 1, 51, ..., 951 for 20. More than asked for if no divisor."""
    if not 1 <= steps <= training_steps:
        raise UserError(f"{steps} sampling steps; 1 to {training_steps} are possible")
    return [t + 1 for t in range(0, training_steps, training_steps // steps)]


def ddim_sigma(alpha: float, alpha_prev: float, eta: float) -> float:
    """Standard deviation of the noise that DDIM adds (its equation 16)."""
    return eta * math.sqrt(max(0.0, (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)))


def prediction_coefficient(alpha: float, alpha_prev: float, sigma: float) -> float:
    """What the noise prediction is multiplied with in a whole DDIM step, `x0` included (negative)."""
    return math.sqrt(max(0.0, 1 - alpha_prev - sigma**2)) - math.sqrt(alpha_prev * (1 - alpha) / alpha)


def calibrated_sigma(sigma: float, coefficient: float, spread: float) -> float:
    """The noise that is left to add when the prediction brings noise of its own (variance calibration).

    Args:
        sigma: of the sampler.
        coefficient: of the prediction in the step.
        spread: standard deviation of the corrected prediction's residual noise.

    Returns:
        `sqrt(sigma^2 - (coefficient * spread)^2)`, or 0 where the prediction's noise is not below the sampler's.
    """
    excess = (coefficient * spread) ** 2
    return math.sqrt(sigma**2 - excess) if excess < sigma**2 else 0.0


@dataclass(frozen=True)
class NoiseCorrection:
    """The corrected prediction `slope * eps_q + offset` of one step, and the noise that is left in it.

    Args:
        offset: (C,).
        spread: standard deviation.
    """

    slope: float
    offset: Tensor
    spread: float

    def __call__(self, eps_q: Tensor) -> Tensor:
        """(B, C, ...) -> the same."""
        offset = self.offset.to(eps_q).reshape(1, -1, *[1] * (eps_q.dim() - 2))
        return eps_q * self.slope + offset


def noise_correction(
    statistics: NoiseStatistics, timestep: int, kind: Correction = "official", clip_negative_k: bool = True
) -> NoiseCorrection:
    """How the statistics of a step correct its predictions.

    Args:
        clip_negative_k: of the official correction: a negative slope counts as 0, as in the authors' code.

    Raises:
        UserError: statistics without this step, or without what the kind of correction needs; a slope of -1 or below
            that is to be divided by, where the quantised prediction no longer grows with the float one.
    """
    row = statistics.row(timestep)
    k, bias, spread = float(statistics.k[row]), statistics.bias[row], float(statistics.residual_std[row])
    if kind == "official" and clip_negative_k:
        k = max(k, 0.0)
    if kind != "wiener" and k <= -1:
        raise UserError(
            f"noise statistics: slope {k:.3g} at time step {timestep}; one of -1 or below cannot be divided out: clip "
            "negative slopes in the official correction, or take more bits"
        )
    if kind == "official":
        return NoiseCorrection(1 / (1 + k), -bias / (1 + k), spread / (1 + k))
    if statistics.mean is None:
        raise UserError(f"the {kind} correction needs means of the float predictions; the authors' files have none")
    mean = statistics.mean[row]
    if kind == "joint":
        return NoiseCorrection(1 / (1 + k), -(bias - k * mean) / (1 + k), spread / (1 + k))
    # Variances relative to that of eps: the error's is (k / r)^2, and Var(eps_q) = Var(eps) + 2 Cov + Var(error).
    r = float(statistics.r[row])
    error = (k / r) ** 2 if r else 1 / float(statistics.snr[row])
    total = 1 + 2 * k + error
    slope = (1 + k) / total if total > 1e-12 else 0.0  # a constant prediction says nothing
    return NoiseCorrection(slope, mean - slope * (mean + bias), 0.0)


@dataclass(frozen=True)
class StepConstants:
    """Everything in one corrected DDIM step that does not depend on images: affine in `x`, `eps_q` and `z`.

    `x0 = x0_x * x + x0_eps * eps_q + x0_offset` and `x_prev = prev_x * x + prev_eps * eps_q + prev_offset + sigma * z`.

    Args:
        x0_offset, prev_offset: (C,).
        sigma: calibrated. direction: factor of the corrected prediction in the direction term.
        excess: variance that the prediction's noise adds to `x_prev`.
        exceeded: the prediction's noise is not below the sampler's, so none is added and the excess stays.
    """

    correction: NoiseCorrection
    x0_x: float
    x0_eps: float
    x0_offset: Tensor
    prev_x: float
    prev_eps: float
    prev_offset: Tensor
    direction: float
    sigma: float
    excess: float
    exceeded: bool


def step_constants(
    correction: NoiseCorrection, alpha: float, alpha_prev: float, eta: float, direction_sigma: DirectionSigma
) -> StepConstants:
    """Section 7, steps 2 to 5, worked out for one step."""
    scheduled = ddim_sigma(alpha, alpha_prev, eta)
    coefficient = prediction_coefficient(alpha, alpha_prev, scheduled)
    sigma = calibrated_sigma(scheduled, coefficient, correction.spread)
    inside = sigma if direction_sigma == "calibrated" else scheduled
    direction = math.sqrt(max(0.0, 1 - alpha_prev - inside**2))
    x0_noise = -math.sqrt((1 - alpha) / alpha)
    noise = math.sqrt(alpha_prev) * x0_noise + direction
    return StepConstants(
        correction=correction,
        x0_x=1 / math.sqrt(alpha),
        x0_eps=x0_noise * correction.slope,
        x0_offset=x0_noise * correction.offset,
        prev_x=math.sqrt(alpha_prev / alpha),
        prev_eps=noise * correction.slope,
        prev_offset=noise * correction.offset,
        direction=direction,
        sigma=sigma,
        excess=(coefficient * correction.spread) ** 2,
        exceeded=scheduled > 0 and sigma == 0.0,
    )


def affine(x: Tensor, a: float, noise: Tensor, b: float, offset: Tensor) -> Tensor:
    """`a * x + b * noise + offset` with as few passes as eager PyTorch allows; offset (1, C, 1, 1)."""
    return torch.add(x * a, noise, alpha=b).add_(offset)
