"""The whole sampling of a Gaussian in closed form: what calibrated variance does, without network or random numbers.

Data are N(0, v) in each dimension, so the exact noise prediction is linear, `eps = m * x` with
`m = sqrt(1 - alpha) / (alpha * v + 1 - alpha)`. The quantisation error is independent, N(0, s_q(t)^2). The variance of
the sample then follows step by step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ptq4dm.method.correction import calibrated_sigma, ddim_sigma, prediction_coefficient, sampled_steps


@dataclass(frozen=True)
class GaussianCase:
    """One setting: data variance, sampling steps, spread of the error by time step, and its name."""

    variance: float
    steps: int
    spread: Callable[[int], float]
    name: str


CASES: tuple[GaussianCase, ...] = (
    GaussianCase(0.25, 50, lambda t: 0.1, "v 0.25, 50 steps, s_q 0.1"),
    GaussianCase(0.25, 50, lambda t: 0.3, "v 0.25, 50 steps, s_q 0.3"),
    GaussianCase(0.25, 20, lambda t: 0.3, "v 0.25, 20 steps, s_q 0.3"),
    GaussianCase(0.25, 250, lambda t: 0.3, "v 0.25, 250 steps, s_q 0.3"),
    GaussianCase(1.0, 50, lambda t: 0.3, "v 1, 50 steps, s_q 0.3"),
    GaussianCase(0.05, 50, lambda t: 0.5 * math.exp(-t / 150), "v 0.05, 50 steps, s_q 0.5 exp(-t/150)"),
)


def ldm_alphas(start: float = 0.0015, end: float = 0.0195, training_steps: int = 1000) -> list[float]:
    """Cumulative products of `1 - beta` of the schedule that is linear in the square root of beta."""
    root = torch.linspace(start**0.5, end**0.5, training_steps, dtype=torch.float64)
    return [float(alpha) for alpha in (1 - root**2).cumprod(0)]


@dataclass(frozen=True)
class Outcome:
    """Variance of the samples, which begin at 1.

    Args:
        exact: of the float sampler.
        uncalibrated: quantised, the sampler's own noise on top.
        official, scheduled: calibrated, with the reduced or the sampler's own sigma in the direction term.
        zero_steps: how many steps had nothing left to add; elsewhere `scheduled` equals `exact`.
    """

    exact: float
    uncalibrated: float
    official: float
    scheduled: float
    zero_steps: int


def final_variances(case: GaussianCase, alphas: Sequence[float] | None = None, eta: float = 1.0) -> Outcome:
    """All samplers of one case.

    Args:
        alphas: cumulative products of `1 - beta`; None takes the paper's schedule.
    """
    alphas = alphas or ldm_alphas()
    steps = sampled_steps(case.steps, len(alphas))
    exact = uncalibrated = official = scheduled = 1.0
    zeros = 0
    for t, before in reversed(list(zip(steps, [0, *steps[:-1]], strict=True))):
        alpha, alpha_prev, spread = alphas[t], alphas[before], case.spread(t)
        sigma = ddim_sigma(alpha, alpha_prev, eta)
        whole = prediction_coefficient(alpha, alpha_prev, sigma)
        left = calibrated_sigma(sigma, whole, spread)
        zeros += left == 0 < sigma
        keep, m = math.sqrt(alpha_prev / alpha), math.sqrt(1 - alpha) / (alpha * case.variance + 1 - alpha)
        reduced = prediction_coefficient(alpha, alpha_prev, left)
        exact = (keep + whole * m) ** 2 * exact + sigma**2
        uncalibrated = (keep + whole * m) ** 2 * uncalibrated + (whole * spread) ** 2 + sigma**2
        official = (keep + reduced * m) ** 2 * official + (reduced * spread) ** 2 + left**2
        scheduled = (keep + whole * m) ** 2 * scheduled + (whole * spread) ** 2 + left**2
    return Outcome(exact, uncalibrated, official, scheduled, zeros)
