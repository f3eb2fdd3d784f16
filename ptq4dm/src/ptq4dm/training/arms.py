"""`eval` of the engine `ldm`: float, quantised and corrected sampling from the same noise, on seeds of its own.

Shapes: B images, C channels, H height, W width.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperkit.data.seeding import seed_of
from paperkit.results.metrics import Claim, Metrics, Row
from paperkit.results.report import figure, print_metrics, save_figure
from ptq4dm.method.calibration import Records
from ptq4dm.method.quant_model import set_quantized
from ptq4dm.models.ddim_scheduler import PTQDScheduler
from ptq4dm.training.denoising import EVALUATION, batches, denoise, drawn
from ptq4dm.training.diffusion import guided
from ptq4dm.training.finished import Finished
from ptq4dm.training.progress import progress
from ptq4dm.training.settings import EvaluationConfig

ARMS = ("float", "quantised", "corrected")


def compare(finished: Finished, options: Any, output: Path) -> None:
    """Samples every arm, and writes metrics.json, figures/samples.png and the table.

    Rows: the mean squared distance of a sample to the float one from the same noise, in the space that the network
    works in; the mean squared error of the guided noise prediction along the float trajectory, before and after the
    correction; the variance of the samples.
    """
    start, config = time.monotonic(), options.evaluation
    found: dict[str, list[Tensor]] = {arm: [] for arm in ARMS}
    errors: dict[str, list[float]] = {arm: [] for arm in ARMS[1:]}
    weights: list[int] = []
    parts = batches(config.images, options.calibration.batch)
    with progress("evaluation", len(parts)) as advance:
        for number, images in enumerate(parts):
            seed = seed_of(config.seed, EVALUATION, number)
            chosen = drawn(images, seed_of(config.seed, EVALUATION), finished.diffusion.conditions)
            samples, along = _batch(finished, config, chosen, seed)
            for arm, value in samples.items():
                found[arm].append(value)
            for arm, error in along.items():
                errors[arm].append(error)
            weights.append(len(images))
            advance(1)
    samples = {arm: torch.cat(parts) for arm, parts in found.items()}
    rows = []
    for arm in ARMS[1:]:
        distance = (samples[arm] - samples["float"]).pow(2).mean().item()
        error = sum(e * w for e, w in zip(errors[arm], weights, strict=True)) / sum(weights)
        rows += [Row(arm, "distance to the float samples", [distance]), Row(arm, "noise error", [error])]
    rows += [Row(arm, "variance of the samples", [value.var().item()]) for arm, value in samples.items()]
    quantised, corrected = rows[1].mean, rows[3].mean
    claim = Claim("the correction lowers the held-out noise error", False, corrected < quantised,
                  f"{corrected:.3g} against {quantised:.3g}")  # fmt: skip
    metrics = Metrics("ptq4dm", [config.seed], time.monotonic() - start, rows, [claim])
    metrics.write(output / "metrics.json")
    print_metrics(metrics, f"{config.images} images of each arm; simulated quantisation, so no times")
    _draw({arm: value[:8] for arm, value in samples.items()}, finished, output / "figures" / "samples.png")


@torch.no_grad()
def _batch(
    finished: Finished, config: EvaluationConfig, chosen: Tensor, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The samples (B, C, H, W) of each arm, and each arm's noise error along the float trajectory."""
    diffusion, sampler = finished.diffusion, finished.sampler
    corrected = scheduler_of(finished, config)
    errors = dict.fromkeys(ARMS[1:], 0.0)

    def compare_predictions(step: int, call: Records, exact: Tensor) -> None:
        t = int(call.t[0])
        finished.before_step(t)
        set_quantized(diffusion.unet, weights=True, activations=True)
        coarse = guided(diffusion.unet, call, sampler.guidance)
        set_quantized(diffusion.unet, weights=False, activations=False)
        for arm, noise in (("quantised", coarse), ("corrected", corrected.corrected(coarse, t))):
            errors[arm] += (noise - exact).pow(2).mean().item() / sampler.steps

    set_quantized(diffusion.unet, weights=False, activations=False)
    samples = {"float": denoise(diffusion, sampler, chosen, seed, watch=compare_predictions)}
    set_quantized(diffusion.unet, weights=True, activations=True)
    samples["quantised"] = denoise(diffusion, sampler, chosen, seed, before=finished.before_step)
    samples["corrected"] = denoise(diffusion, sampler, chosen, seed, scheduler=corrected, before=finished.before_step)
    return samples, errors


def scheduler_of(finished: Finished, config: EvaluationConfig) -> PTQDScheduler:
    """The corrected sampler of a run, with its steps set."""
    scheduler = PTQDScheduler(
        **finished.diffusion.schedule,
        clip_negative_k=config.clip_negative_k,
        direction_sigma=config.direction_sigma,
    )
    scheduler.set_statistics(finished.statistics)
    scheduler.set_timesteps(finished.sampler.steps)
    return scheduler


def _draw(samples: dict[str, Tensor], finished: Finished, path: Path) -> None:
    """One row of images for each arm."""
    count = len(samples["float"])
    drawn, axes = figure(len(samples), count, 1.2 * count + 0.6, 1.3 * len(samples) + 0.4, squeeze=False)
    device = next(finished.diffusion.unet.parameters()).device
    for row, (arm, latents) in zip(axes, samples.items(), strict=True):
        decode = finished.diffusion.decode
        images = latents if decode is None else decode(latents.to(device)).cpu()
        pixels = (images.clamp(-1, 1) / 2 + 0.5).movedim(1, -1)
        for axis, image in zip(row, pixels, strict=True):
            axis.imshow(image[..., :3] if image.shape[-1] >= 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(arm)
    drawn.suptitle("The same noise: float, quantised, corrected")
    save_figure(drawn, path)
