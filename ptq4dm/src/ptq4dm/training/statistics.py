"""Noise statistics of a run for each bit width of activations, and which step gets which width.

Both predictions are compared along the float model's trajectories; a batch leaves its float64 sums in one file, and the
sums of all batches are added in their order, whichever process made them (section 6 of the method).
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperkit.data.seeding import seed_of
from paperkit.files.weights import read_safetensors
from ptq4dm.method.bit_schedule import BitSchedule, budget_schedule, snr_schedule
from ptq4dm.method.calibration import Records
from ptq4dm.method.correction import ddim_sigma, prediction_coefficient
from ptq4dm.method.noise_statistics import NoiseStatistics, StatisticsAccumulator
from ptq4dm.method.quant_model import set_activation_ranges, set_quantized
from ptq4dm.models.ddim_scheduler import PTQDScheduler
from ptq4dm.training.collection import make_parts, remove
from ptq4dm.training.denoising import PAIRS, batches, denoise, drawn
from ptq4dm.training.diffusion import Diffusion, guided
from ptq4dm.training.processes import Processes
from ptq4dm.training.quantization import Ranges
from ptq4dm.training.settings import BitsConfig, CalibrationConfig, SamplerConfig

Schedule = dict[int, int]
"""Time step -> bit width of activations."""


def identity(diffusion: Diffusion, bits: BitsConfig, sampler: SamplerConfig) -> dict[str, Any]:
    """What statistics belong to; they are refused for anything else."""
    digest = hashlib.sha256()
    for name, tensor in sorted(diffusion.unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "model": digest.hexdigest()[:20],
        "weight_bits": bits.weight_bits,
        "sampler": "ddim",
        "steps": sampler.steps,
        "eta": sampler.eta,
        "guidance": sampler.guidance,
    }


def statistics_file(folder: Path, width: int) -> Path:
    """In the folder `model` of a run."""
    return folder / f"statistics_a{width}.safetensors"


def collect_statistics(
    diffusion: Diffusion,
    ranges: Ranges,
    sampler: SamplerConfig,
    config: CalibrationConfig,
    seed: int,
    about: dict[str, Any],
    folder: Path,
    processes: Processes,
) -> dict[int, NoiseStatistics]:
    """Statistics by bit width, kept in `folder`/model; `folder`/statistics holds the parts until then.

    Args:
        diffusion: its U-Net is quantised; switched off it is the float one, which drives the trajectories.
        about: see `identity`.
    """
    files = {width: statistics_file(folder / "model", width) for width in ranges}
    parts = folder / "statistics"
    if all(file.is_file() for file in files.values()):
        if processes.first:
            remove(list(parts.glob("part_*")))
        return {width: NoiseStatistics.load(file) for width, file in files.items()}

    def make(number: int, images: range) -> dict[str, Tensor]:
        sums = {width: StatisticsAccumulator() for width in ranges}

        def watch(step: int, call: Records, exact: Tensor) -> None:
            for width, accumulator in sums.items():
                if len(ranges) > 1:  # a single one is there already
                    set_activation_ranges(diffusion.unet, ranges[width])
                set_quantized(diffusion.unet, weights=True, activations=True)
                accumulator.add(int(call.t[0]), exact, guided(diffusion.unet, call, sampler.guidance))
            set_quantized(diffusion.unet, weights=False, activations=False)

        set_quantized(diffusion.unet, weights=False, activations=False)
        chosen = drawn(images, seed_of(seed, PAIRS), diffusion.conditions)
        denoise(diffusion, sampler, chosen, seed_of(seed, PAIRS, number), watch=watch)
        return {f"a{width}.{key}": value for width, found in sums.items() for key, value in found.state().items()}

    made = make_parts("statistics", parts, batches(config.pairs, config.batch), make, processes)
    if processes.first:
        tensors = [read_safetensors(file)[0] for file in made]
        for width, file in files.items():
            prefix, total = f"a{width}.", StatisticsAccumulator()
            for part in tensors:
                total.merge({key.removeprefix(prefix): v for key, v in part.items() if key.startswith(prefix)})
            total.finish({**about, "activation_bits": width}).save(file)
        remove(made)
    processes.wait()
    return {width: NoiseStatistics.load(file) for width, file in files.items()}


def schedule_of(
    statistics: dict[int, NoiseStatistics], diffusion: Diffusion, bits: BitsConfig, sampler: SamplerConfig
) -> BitSchedule:
    """Which step gets which bit width of activations: by the SNR rule, or within a budget (section 8 of the method)."""
    scheduler, timesteps = PTQDScheduler(**diffusion.schedule), next(iter(statistics.values())).timesteps
    scheduler.set_timesteps(sampler.steps)
    if bits.mean_bits is None:
        snr = {width: found.snr for width, found in statistics.items()}
        chosen = snr_schedule(snr, timesteps, scheduler.alphas_cumprod, bits.weight_bits)
    else:
        pairs = [scheduler.alpha_pair(t) for t in timesteps.tolist()]
        coefficients = [prediction_coefficient(*pair, ddim_sigma(*pair, sampler.eta)) for pair in pairs]
        left = {width: found.residual_std**2 for width, found in statistics.items()}  # what the correction leaves
        chosen = budget_schedule(left, coefficients, timesteps, bits.mean_bits, bits.weight_bits)
    return chosen.smoothed() if bits.monotone else chosen


def joined(statistics: dict[int, NoiseStatistics], schedule: Schedule) -> NoiseStatistics:
    """Each row from the statistics of its step's bit width."""
    first = statistics[max(statistics)]
    widths = [schedule[t] for t in first.timesteps.tolist()]
    rows = {
        name: torch.stack([getattr(statistics[width], name)[row] for row, width in enumerate(widths)])
        for name in ("k", "r", "bias", "residual_std", "snr", "mean")
    }
    about = {**first.identity, "activation_bits": widths[0] if len({*widths}) == 1 else "mixed"}
    return dataclasses.replace(first, **rows, identity=about)
