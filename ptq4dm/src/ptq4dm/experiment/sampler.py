"""The experiment's two samplers: DDIM of 20 steps without noise and of 50 steps with it, all arms from the same noise.

Shapes: B images, C channels, T training steps.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ptq4dm.experiment.settings import ETA0_STEPS, ETA1_STEPS
from ptq4dm.method.noise_statistics import NoiseStatistics
from ptq4dm.models.ddim_scheduler import LDM_SCHEDULE, PTQDScheduler

ETAS = {ETA0_STEPS: 0.0, ETA1_STEPS: 1.0}

Predict = Callable[[Tensor, int], Tensor]
"""Images (B, C, 8, 8) and the time step to the predicted noise, same shape."""


def new_scheduler(steps: int, statistics: NoiseStatistics | None = None, **options: Any) -> PTQDScheduler:
    """Plain DDIM, or with statistics the corrected one; `options` are of `PTQDScheduler`."""
    scheduler = PTQDScheduler(**LDM_SCHEDULE, **options)
    scheduler.set_timesteps(steps)
    if statistics is not None:
        scheduler.set_statistics(statistics)
    return scheduler


def predictor(unet: nn.Module) -> Predict:
    """A network as a function."""
    return lambda x, t: unet(x, t).sample


def mixed(networks: Mapping[int, nn.Module], bits: Mapping[int, int]) -> Predict:
    """Networks by the bits of their activations, one of them at each step: time step -> bits."""
    return lambda x, t: networks[bits[t]](x, t).sample


def start_noise(count: int, channels: int, seed: int) -> Tensor:
    """(B, C, 8, 8), a function of the seed."""
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def walk(
    predict: Predict, scheduler: PTQDScheduler, x: Tensor, eta: float = 0.0, noise_seed: int = 0
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Time step, image before it, prediction, and image after it, for every step from noise to image.

    Args:
        noise_seed: of the noise that a step with `eta` adds; arms with the same seed get the same noise.
    """
    generator = torch.Generator().manual_seed(noise_seed)
    for t in scheduler.timesteps.tolist():
        noise = predict(x, t)
        fresh = torch.randn(x.shape, generator=generator) if eta else None
        after = scheduler.step(noise, t, x, eta=eta, variance_noise=fresh).prev_sample
        yield t, x, noise, after
        x = after
