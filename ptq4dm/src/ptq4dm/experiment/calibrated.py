"""A trained network's quantised forms and the statistics of their noise: made once, read from files afterwards.

Shapes: B images, C channels, S sampled steps.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from paperkit.data.seeding import seed_of
from paperkit.files.weights import load_strict, read_weights, save_weights
from ptq4dm.experiment.network import trained
from ptq4dm.experiment.sampler import ETAS, new_scheduler, predictor, start_noise, walk
from ptq4dm.experiment.settings import ETA0_STEPS, ETA1_STEPS, WIDTHS, ExperimentConfig
from ptq4dm.method.calibration import Records
from ptq4dm.method.noise_statistics import NoiseStatistics, StatisticsAccumulator
from ptq4dm.method.quant_model import QuantConfig, initialise_ranges, quantize, set_quantized

CALIBRATION, PAIRS = 3, 4  # streams of random numbers
MEASURED = {ETA0_STEPS: tuple(WIDTHS), ETA1_STEPS: ("w4a8",)}
"""Steps of a sampler -> widths whose noise is measured along it."""


@dataclass(frozen=True)
class Calibrated:
    """A float network, its quantised forms by width, and statistics by steps of the sampler and width."""

    unet: nn.Module
    quantised: dict[str, nn.Module]
    statistics: dict[int, dict[str, NoiseStatistics]]


def calibrate(seed: int, folder: Path, config: ExperimentConfig) -> None:
    """Takes the ranges of each width, and the statistics of its noise, on trajectories of the float network."""
    unet = trained(folder, config)
    missing = [name for name in WIDTHS if not _ranges_file(folder, name).exists()]
    if missing:
        records = calibration_records(unet, seed, config)
    for name in missing:
        quantised = quantize(copy.deepcopy(unet), QuantConfig(*WIDTHS[name]))
        initialise_ranges(quantised, records, config.records)
        save_weights(_ranges_file(folder, name), quantised.state_dict())
    for steps, names in MEASURED.items():
        if not all(_statistics_file(folder, steps, name).exists() for name in names):
            measure_noise(seed, folder, config, steps, names)


def calibration_records(unet: nn.Module, seed: int, config: ExperimentConfig) -> Records:
    """Calls of the float network along its 20 steps, `config.records` of them drawn over all steps."""
    count = max(config.pairs, -(-config.records // ETA0_STEPS))
    start = start_noise(count, config.channels, seed_of(seed, CALIBRATION))
    calls = [(x, t) for t, x, _, _ in walk(predictor(unet), new_scheduler(ETA0_STEPS), start)]
    x, t = torch.cat([x for x, _ in calls]), torch.tensor([t for _, t in calls]).repeat_interleave(count)
    return Records(x, t).shuffled(config.records, seed_of(seed, CALIBRATION, 1))


@torch.no_grad()
def measure_noise(seed: int, folder: Path, config: ExperimentConfig, steps: int, names: tuple[str, ...]) -> None:
    """Both predictions at each step of the float trajectory, as sums alone; one file for each width."""
    unet, quantised = trained(folder, config), {name: load_quantised(folder, name, config) for name in names}
    sums = {name: StatisticsAccumulator() for name in names}
    noise_seed = seed_of(seed, PAIRS, steps)
    start = start_noise(config.pairs, config.channels, noise_seed)
    for t, x, noise, _ in walk(predictor(unet), new_scheduler(steps), start, ETAS[steps], noise_seed):
        for name, network in quantised.items():
            sums[name].add(t, noise, predictor(network)(x, t))
    for name, found in sums.items():
        w_bits, a_bits = WIDTHS[name]
        sampler = {"sampler": "ddim", "steps": steps, "eta": ETAS[steps], "guidance": 1.0}
        identity = {"model": f"digits, seed {seed}", "bits": f"w{w_bits}a{a_bits}", **sampler}
        found.finish(identity).save(_statistics_file(folder, steps, name))


def load_quantised(folder: Path, name: str, config: ExperimentConfig) -> nn.Module:
    """The quantised form of a width, in evaluation mode, with weights and activations quantised."""
    network = quantize(trained(folder, config), QuantConfig(*WIDTHS[name]))
    path = _ranges_file(folder, name)
    load_strict(network, read_weights(path, advice=None), str(path))
    set_quantized(network, weights=True, activations=True)
    return network.eval()


def load_calibrated(folder: Path, config: ExperimentConfig) -> Calibrated:
    """Everything that `calibrate` left."""
    return Calibrated(
        trained(folder, config),
        {name: load_quantised(folder, name, config) for name in WIDTHS},
        {
            steps: {name: NoiseStatistics.load(_statistics_file(folder, steps, name)) for name in names}
            for steps, names in MEASURED.items()
        },
    )


def _ranges_file(folder: Path, name: str) -> Path:
    return folder / f"quantised-{name}.safetensors"


def _statistics_file(folder: Path, steps: int, name: str) -> Path:
    return folder / f"statistics-{name}-{steps}steps.safetensors"
