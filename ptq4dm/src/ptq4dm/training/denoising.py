"""One batch of images from noise, by DDIM; each batch is a function of the seed and of its number alone.

Shapes: B images, C channels, H height, W width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paperkit.data.seeding import seed_of
from ptq4dm.method.calibration import Records
from ptq4dm.training.diffusion import Diffusion, guided
from ptq4dm.training.settings import SamplerConfig

CALIBRATION, PAIRS, EVALUATION = range(3)
"""What images are sampled for; no two purposes share their noise."""

Watch = Callable[[int, Records, Tensor], None]
"""Told of each step: its number, the call of the network, the guided prediction (B, C, H, W)."""


def batches(images: int, size: int) -> list[range]:
    """The images of each batch by their numbers; the last may be smaller."""
    return [range(first, min(first + size, images)) for first in range(0, images, size)]


def spread(images: range, total: int, conditions: int) -> Tensor:
    """The condition of each image, all of them equally often and in order: 4 of each class at 4000 images."""
    return torch.tensor([image * conditions // total for image in images])


def drawn(images: range, seed: int, conditions: int) -> Tensor:
    """The condition of each image, uniformly at random."""
    return torch.tensor([seed_of(seed, image) % max(1, conditions) for image in images])


@torch.no_grad()
def denoise(
    diffusion: Diffusion,
    sampler: SamplerConfig,
    chosen: Tensor,
    seed: int,
    watch: Watch | None = None,
    scheduler: Any = None,
    before: Callable[[int], None] | None = None,
) -> Tensor:
    """Samples (B, C, H, W), on the CPU.

    Args:
        chosen: (B,), the condition of each image.
        seed: of the starting noise and of the noise of every step.
        watch: see `Watch`.
        scheduler: other than plain DDIM's, with its steps set.
        before: called with the time step before the network is.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(chosen), *diffusion.shape, generator=generator)
    scheduler = scheduler or diffusion.scheduler(sampler.steps)
    for step, t in enumerate(scheduler.timesteps.tolist()):
        if before is not None:
            before(t)
        call = diffusion.records(x, t, chosen, sampler.guidance)
        noise = guided(diffusion.unet, call, sampler.guidance)
        if watch is not None:
            watch(step, call, noise)
        # Drawn at eta 0 as well, where it is not used: the batch's later numbers do not depend on eta.
        fresh = torch.randn(x.shape, generator=generator)
        x = scheduler.step(noise, t, x, eta=sampler.eta, variance_noise=fresh).prev_sample
    return x
