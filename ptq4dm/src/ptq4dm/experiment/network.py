"""The small U-Net of the experiment, and its training, which a kill cannot hurt.

Shapes: B images, C channels.
"""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.data.seeding import seed_generators, seed_of
from paperkit.errors import Interrupted, UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import load_strict, read_checkpoint, read_weights, save_checkpoint, save_weights
from paperkit.training.stages import sigterm_noted
from ptq4dm.experiment.digits import split_digits
from ptq4dm.experiment.sampler import new_scheduler
from ptq4dm.experiment.settings import ExperimentConfig

WEIGHTS, BATCHES = 1, 2  # streams of random numbers
EMA_DECAY = 0.99
WARM_UP = 0.05  # of the steps
SAVE_EVERY = 50  # steps


def digit_unet(channels: int = 1) -> nn.Module:
    """177 thousand parameters for 8 x 8 pixels: two levels, attention at the lower one."""
    network: Any = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return network


def new_network(channels: int, seed: int) -> nn.Module:
    """A network whose initial weights are a function of the seed."""
    seed_generators(seed, WEIGHTS)
    return digit_unet(channels)


def trained(folder: Path, config: ExperimentConfig) -> nn.Module:
    """The averaged weights of a seed that is done, in evaluation mode."""
    network, path = digit_unet(config.channels), folder / "weights.safetensors"
    load_strict(network, read_weights(path, advice=None), str(path))
    return network.eval()


def train_network(seed: int, folder: Path, config: ExperimentConfig, advance: Callable[[int], None]) -> None:
    """Learns to predict the noise, and keeps the exponential average of the weights; batch i is a function of i.

    Raises:
        UserError: a loss that is not finite, with the step.
        Interrupted: after SIGTERM, with a checkpoint written.
    """
    done, last = folder / "weights.safetensors", folder / "last.ckpt"
    if done.exists():
        last.unlink(missing_ok=True)
        advance(config.steps)
        return
    network = new_network(config.channels, seed).train()
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    images, _ = split_digits(config.tinted)
    signal = new_scheduler(1).alphas_cumprod.to(images)
    first, losses = 0, list[float]()
    if last.exists():
        kept = read_checkpoint(last, advice=None)
        load_strict(network, kept["model"], str(last))
        load_strict(average, kept["average"], str(last))
        optimizer.load_state_dict(kept["optimizer"])
        first, losses = kept["step"], kept["losses"]
    advance(first)

    def save(step: int) -> None:
        parts = dict(model=network.state_dict(), average=average.state_dict(), optimizer=optimizer.state_dict())
        save_checkpoint(last, dict(parts, step=step, losses=losses))

    with sigterm_noted() as received:
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate(step, config.steps)
            loss = noise_loss(network, images, signal, seed, step, config.batch_size)
            if not loss.isfinite():
                raise UserError(
                    f"the loss is not finite at step {step} (learning rate {config.lr:g}); try a lower --lr"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - EMA_DECAY)
            losses.append(loss.item())
            advance(1)
            if received:
                save(step + 1)
                raise Interrupted(f"interrupted after step {step + 1}", 128 + received[0])
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < config.steps:
                save(step + 1)
    write_atomic(folder / "losses.json", json.dumps(losses) + "\n")
    write_events(folder / "tensorboard", losses)
    save_weights(done, average.eval().state_dict())  # last: where the weights are, everything is
    last.unlink(missing_ok=True)


def noise_loss(network: nn.Module, images: Tensor, signal: Tensor, seed: int, step: int, batch_size: int) -> Tensor:
    """Mean squared error of the predicted noise on the batch of one step.

    Args:
        images: (N, C, 8, 8). signal: (T,), the cumulative product of `1 - beta`.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, BATCHES, step))
    chosen = torch.randint(len(images), (batch_size,), generator=generator)
    t = torch.randint(len(signal), (batch_size,), generator=generator)
    clean = images[chosen]
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    kept = signal[t].view(-1, 1, 1, 1)
    return F.mse_loss(network(kept.sqrt() * clean + (1 - kept).sqrt() * noise, t).sample, noise)


def rate(step: int, steps: int) -> float:
    """Share of the top learning rate: a linear rise over the first 5 % of the steps, then half a cosine to 0."""
    rise = max(1, round(WARM_UP * steps))
    return (step + 1) / rise if step < rise else (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def write_events(folder: Path, losses: list[float]) -> None:
    """The losses for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter  # late: it takes a second

    with SummaryWriter(str(folder)) as writer:
        for step, loss in enumerate(losses):
            writer.add_scalar("loss", loss, step)
