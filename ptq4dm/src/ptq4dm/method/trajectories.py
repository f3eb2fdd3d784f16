"""Pairs of float and quantised predictions along the float model's own sampling (section 6 of the method).

Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

Predict = Callable[[Tensor, int], Tensor]
"""Images (B, C, H, W) and time step -> guided noise prediction of the same shape."""


class Pair(NamedTuple):
    """One step: `eps` and `eps_q` (B, C, H, W) for the same inputs, `x` before it, `x_prev` after it."""

    timestep: int
    eps: Tensor
    eps_q: Tensor
    x: Tensor
    x_prev: Tensor


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance; the correction is fitted and applied behind it."""
    return unconditional + scale * (conditional - unconditional)


@torch.no_grad()
def collect_pairs(
    exact: Predict,
    quantised: Predict,
    scheduler: Any,
    x: Tensor,
    eta: float = 0.0,
    noise: Callable[[int], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Pair]:
    """One trajectory, largest time step first; the float prediction alone drives it.

    Args:
        exact, quantised: both predictions; each is called once a step.
        scheduler: a `DDIMScheduler` of diffusers with its steps set, not corrected.
        x: (B, C, H, W), noise to begin with.
        noise: what step number i (counted from 0) adds, times sigma; None draws it from `generator`.
    """
    for number, timestep in enumerate(scheduler.timesteps.tolist()):
        eps, eps_q = exact(x, timestep), quantised(x, timestep)
        drawn = {"generator": generator} if noise is None else {"variance_noise": noise(number)}
        x_prev = scheduler.step(eps, timestep, x, eta=eta, **drawn).prev_sample
        yield Pair(timestep, eps, eps_q, x, x_prev)
        x = x_prev
