"""Figures of a run folder, drawn from metrics.json and the first network's files."""

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from paperkit.data.seeding import seed_of
from paperkit.results.metrics import Metrics
from paperkit.results.report import save_figure
from ptq4dm.experiment.calibrated import Calibrated, load_calibrated
from ptq4dm.experiment.run import EVALUATION, arm_of, corrected_scheduler, seed_folder
from ptq4dm.experiment.sampler import ETAS, new_scheduler, predictor, start_noise, walk
from ptq4dm.experiment.settings import (
    ETA0_ARMS,
    ETA0_STEPS,
    ETA1_STEPS,
    FLOAT,
    MIXED_3,
    MIXED_4,
    OFFICIAL,
    QUANTISED,
    SIGNED,
    ExperimentConfig,
)
from ptq4dm.experiment.summary import BOPS, DISTANCE, FRECHET, of_sampler
from ptq4dm.figures.bits import draw_quality, draw_snr
from ptq4dm.figures.errors import draw_error_scatter, draw_residuals
from ptq4dm.figures.samples import draw_grid, draw_paths
from ptq4dm.figures.statistics import draw_sigmas, draw_statistics
from ptq4dm.method.correction import ddim_sigma, prediction_coefficient

IMAGES = 64  # behind the pictures of errors
SHOWN = 12  # images in a row of samples


def draw(metrics: Metrics, run: Path, folder: Path) -> list[Path]:
    """Every figure of a run as PNG files in `folder`."""
    seed = metrics.extra["networks"][0]
    config = ExperimentConfig(images=metrics.extra["images"], tinted=metrics.extra["tinted"])
    parts = load_calibrated(seed_folder(run, seed), config)
    found = parts.statistics[ETA0_STEPS]["w4a8"]
    steps = found.timesteps.tolist()
    late = steps[int(found.k.abs().argmax())]
    noises, residuals = held_out_errors(parts, seed, config)
    signal = new_scheduler(ETA0_STEPS).alphas_cumprod[steps]
    figures: dict[str, Callable[[], Figure]] = {
        "error_scatter": lambda: draw_error_scatter(*noises[late], late),
        "statistics": lambda: draw_statistics(steps, found.k, found.r, found.bias, found.residual_std),
        "residuals": lambda: draw_residuals({late: residuals[late], **residuals}),
        "snr": lambda: draw_snr(
            steps,
            metrics.extra["snr"][0],
            (signal / (1 - signal)).tolist(),
            {arm: metrics.extra["bits"][0][arm] for arm in (MIXED_4, MIXED_3)},
        ),
        "sigmas": lambda: draw_sigmas(*sigmas(parts)),
        "samples": lambda: draw_samples(parts, seed, config),
        "paths": lambda: draw_mean_paths(metrics, steps),
        "quality": lambda: draw_costs(metrics),
    }
    for name, make in figures.items():
        save_figure(make(), folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


@torch.no_grad()
def held_out_errors(
    parts: Calibrated, seed: int, config: ExperimentConfig
) -> tuple[dict[int, tuple[Tensor, Tensor]], dict[int, Tensor]]:
    """Time step -> float predictions and errors of W4A8, each (N,), and what the fitted line leaves of the errors."""
    found, quantised = parts.statistics[ETA0_STEPS]["w4a8"], predictor(parts.quantised["w4a8"])
    slopes = dict(zip(found.timesteps.tolist(), found.k.tolist(), strict=True))
    start = start_noise(IMAGES, config.channels, seed_of(seed, EVALUATION, ETA0_STEPS, 0))
    noises, residuals = {}, {}
    for t, x, noise, _ in walk(predictor(parts.unet), new_scheduler(ETA0_STEPS), start):
        error = quantised(x, t) - noise
        noises[t] = noise.flatten(), error.flatten()
        residuals[t] = (error - slopes[t] * noise).flatten()
    return noises, residuals


def sigmas(parts: Calibrated) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """Time steps of the stochastic sampler, ascending; its noise as scheduled, as calibrated, and what is added."""
    scheduler, eta = corrected_scheduler(parts, ETA1_STEPS, OFFICIAL), ETAS[ETA1_STEPS]
    timesteps = scheduler.timesteps.flip(0).tolist()
    signal = scheduler.alphas_cumprod[timesteps].tolist()
    found = []
    for t, alpha, alpha_prev in zip(timesteps, signal, [float(scheduler.final_alpha_cumprod), *signal], strict=False):
        step, sigma = scheduler.constants(t, eta), ddim_sigma(alpha, alpha_prev, eta)
        coefficient = prediction_coefficient(alpha, alpha_prev, sigma)
        found.append((sigma, step.sigma, abs(coefficient) * step.correction.spread))
    scheduled, calibrated, added = torch.tensor(found).unbind(1)
    return timesteps, scheduled, calibrated, added


def draw_samples(parts: Calibrated, seed: int, config: ExperimentConfig) -> Figure:
    """The first images of the first draw."""
    start = start_noise(config.images, config.channels, seed_of(seed, EVALUATION, ETA0_STEPS, 0))[:SHOWN]
    rows = {}
    for arm in (FLOAT, QUANTISED, OFFICIAL, SIGNED, MIXED_3):
        for _, _, _, image in walk(*arm_of(arm, parts, ETA0_STEPS), start):
            rows[arm] = image
    return draw_grid(rows, f"One noise a column, {ETA0_STEPS} deterministic steps")


def draw_mean_paths(metrics: Metrics, timesteps: list[int]) -> Figure:
    """Distance to the float trajectory, mean of all draws."""
    paths = metrics.extra["path"]
    arms = [arm for arm in ETA0_ARMS if arm != FLOAT]
    means = {arm: torch.tensor([path[arm] for path in paths]).mean(0).tolist() for arm in arms}
    return draw_paths(timesteps[::-1], means)


def draw_costs(metrics: Metrics) -> Figure:
    """Quality of the deterministic sampler against bit operations."""
    bops, frechet, distance = (
        {arm: metrics.row(arm, name).mean for arm in ETA0_ARMS}
        for name in (BOPS, of_sampler(0, FRECHET), of_sampler(0, DISTANCE))
    )
    parts = {arm: (bops[arm], frechet[arm], distance[arm]) for arm in ETA0_ARMS}
    return draw_quality(parts, f"What quality costs: {len(metrics.seeds)} paired draws, simulated quantisation")
