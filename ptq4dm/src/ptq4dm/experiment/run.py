"""The embedded experiment for one network, from top to bottom: trained, calibrated, measured on noise of its own.

Shapes: B images, C channels, S sampled steps.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperkit.data.seeding import seed_of
from ptq4dm.experiment import settings as names
from ptq4dm.experiment.calibrated import Calibrated, calibrate, load_calibrated
from ptq4dm.experiment.digits import pixel_frechet, split_digits
from ptq4dm.experiment.network import train_network
from ptq4dm.experiment.sampler import ETAS, Predict, mixed, new_scheduler, predictor, start_noise, walk
from ptq4dm.experiment.settings import (
    ETA0_ARMS,
    ETA0_STEPS,
    ETA1_ARMS,
    ETA1_STEPS,
    FLOAT,
    MIXED,
    OFFICIAL,
    PLAIN,
    QUANTISED,
    SIGNED,
    WIDTHS,
    Draw,
    ExperimentConfig,
    SeedResult,
)
from ptq4dm.method.bit_schedule import BitSchedule, snr_schedule
from ptq4dm.method.bops import count_cost
from ptq4dm.method.calibration import Records
from ptq4dm.models.ddim_scheduler import PTQDScheduler

EVALUATION = 5  # stream of random numbers
Advance = Callable[[int], None]
CORRECTIONS: dict[str, dict[str, Any]] = {
    OFFICIAL: {},
    SIGNED: {"clip_negative_k": False},
    names.SCHEDULED: {"direction_sigma": "scheduled"},
    names.SIGNED_SCHEDULED: {"clip_negative_k": False, "direction_sigma": "scheduled"},
}
"""Arm of W4A8 -> options of the corrected scheduler."""


def run_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Train one network in the run folder `run`, quantise it, measure its noise, and sample every arm."""
    folder = seed_folder(Path(run), seed)
    train_network(seed, folder, config, advance)
    calibrate(seed, folder, config)
    return measure_seed(seed, advance, run, config)


def seed_folder(run: Path, seed: int) -> Path:
    """What a seed leaves."""
    return run / f"seed-{seed}"


def measure_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Every number of a network that is trained and calibrated, from its files."""
    parts = load_calibrated(seed_folder(Path(run), seed), config)
    statistics = parts.statistics[ETA0_STEPS]
    bits = {arm: bits_of(arm, parts) for arm in MIXED}
    errors: list[dict[str, list[float]]] = []
    eta0 = [sample_arms(parts, ETA0_STEPS, ETA0_ARMS, seed, i, config, advance, errors) for i in range(config.draws)]
    eta1 = [sample_arms(parts, ETA1_STEPS, ETA1_ARMS, seed, i, config, advance) for i in range(config.draws)]
    corrected = corrected_scheduler(parts, ETA1_STEPS, OFFICIAL)
    return SeedResult(
        seed,
        noise_error={arm: torch.tensor([one[arm] for one in errors]).mean(0).tolist() for arm in errors[0]},
        k=statistics["w4a8"].k.tolist(),
        snr={name: found.snr.tolist() for name, found in statistics.items()},
        bits={arm: list(found.activation_bits) for arm, found in bits.items()},
        bops=mean_bops(parts, bits, config),
        exceeded=len(corrected.exceeded_steps(ETAS[ETA1_STEPS])),
        eta0=eta0,
        eta1=eta1,
    )


def sample_arms(
    parts: Calibrated,
    steps: int,
    arms: tuple[str, ...],
    seed: int,
    draw: int,
    config: ExperimentConfig,
    advance: Advance,
    errors: list[dict[str, list[float]]] | None = None,
) -> Draw:
    """Every arm from one starting noise, with one noise in the steps.

    Args:
        draw: its number.
        errors: gets the errors of the predicted noise on the float arm's trajectory.
    """
    _, reference = split_digits(config.tinted)
    noise_seed = seed_of(seed, EVALUATION, steps, draw)
    start = start_noise(config.images, config.channels, noise_seed)
    found = Draw({}, {}, {}, {})
    path = list[Tensor]()
    for arm in arms:
        predict, scheduler = arm_of(arm, parts, steps)
        walked = list(walk(predict, scheduler, start, ETAS[steps], noise_seed))
        if arm == FLOAT:
            path = [after for _, _, _, after in walked]
            if errors is not None:
                errors.append(noise_errors(parts, [(t, x, noise) for t, x, noise, _ in walked]))
        found.path[arm] = [
            (after - whole).square().mean().item() for (_, _, _, after), whole in zip(walked, path, strict=True)
        ]
        samples = walked[-1][3]
        found.distance[arm] = found.path[arm][-1]
        found.frechet[arm] = pixel_frechet(samples, reference)
        found.variance[arm] = samples.var().item()
        advance(steps)
    return found


def arm_of(arm: str, parts: Calibrated, steps: int) -> tuple[Predict, PTQDScheduler]:
    """What predicts the noise in an arm, and what takes the step."""
    if arm == FLOAT:
        return predictor(parts.unet), new_scheduler(steps)
    if arm in PLAIN:
        return predictor(parts.quantised[PLAIN[arm]]), new_scheduler(steps)
    if arm in MIXED:
        networks = {WIDTHS[name][1]: parts.quantised[name] for name in (MIXED[arm], "w4a8")}
        return mixed(networks, bits_of(arm, parts).bits()), new_scheduler(steps)
    return predictor(parts.quantised["w4a8"]), corrected_scheduler(parts, steps, arm)


def corrected_scheduler(parts: Calibrated, steps: int, arm: str) -> PTQDScheduler:
    """The sampler of a corrected arm of W4A8."""
    return new_scheduler(steps, parts.statistics[steps]["w4a8"], **CORRECTIONS[arm])


def bits_of(arm: str, parts: Calibrated) -> BitSchedule:
    """Bits of the activations by the SNR rule of an arm's two widths, or in reversed order."""
    found = {WIDTHS[name][1]: parts.statistics[ETA0_STEPS][name] for name in (MIXED[arm], "w4a8")}
    timesteps, alphas = found[8].timesteps, new_scheduler(ETA0_STEPS).alphas_cumprod
    schedule = snr_schedule({width: one.snr for width, one in found.items()}, timesteps, alphas)
    return schedule.reversed() if arm in (names.REVERSED_4, names.REVERSED_3) else schedule


def mean_bops(parts: Calibrated, bits: Mapping[str, BitSchedule], config: ExperimentConfig) -> dict[str, list[float]]:
    """Arm -> bit operations of a call in millions, on average over the 20 steps: nominal and exact."""
    example = Records(torch.zeros(1, config.channels, 8, 8), torch.tensor([1]))
    whole, other = (count_cost(parts.quantised[name], example) for name in ("w4a8", "w8a8"))
    found = {FLOAT: (float(whole.float_bops(products=False)), float(whole.float_bops(products=True)))}
    for arm in ETA0_ARMS[1:]:
        name = PLAIN.get(arm, "w4a8")
        widths = bits[arm].activation_bits if arm in bits else (WIDTHS[name][1],)
        found[arm] = (other if name == "w8a8" else whole).mean(widths)
    return {arm: [value / 1e6 for value in values] for arm, values in found.items()}


@torch.no_grad()
def noise_errors(parts: Calibrated, calls: list[tuple[int, Tensor, Tensor]]) -> dict[str, list[float]]:
    """Arm -> mean squared error of the predicted noise at each call, in ascending time.

    Args:
        calls: time step, image and float prediction.
    """
    schedulers = {arm: corrected_scheduler(parts, ETA0_STEPS, arm) for arm in (OFFICIAL, SIGNED)}
    found: dict[str, list[float]] = {arm: [] for arm in (QUANTISED, *schedulers)}
    for t, x, noise in reversed(calls):
        quantised = predictor(parts.quantised["w4a8"])(x, t)
        found[QUANTISED].append((quantised - noise).square().mean().item())
        for arm, scheduler in schedulers.items():
            found[arm].append((scheduler.corrected(quantised, t) - noise).square().mean().item())
    return found
