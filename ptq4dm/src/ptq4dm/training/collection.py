"""Calibration data of a run: the float model is sampled batch by batch, and the calls drawn beforehand are kept.

Every batch leaves one file and is a function of the seed and of its number, so that any process may make any of them,
and a run that was killed goes on with the next. Memory holds one batch, never all calls.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from paperkit.data.seeding import seed_of
from paperkit.files.weights import read_safetensors, save_weights
from ptq4dm.method.calibration import Records, concatenated
from ptq4dm.training.denoising import CALIBRATION, batches, denoise, spread
from ptq4dm.training.diffusion import Diffusion
from ptq4dm.training.processes import Processes
from ptq4dm.training.progress import progress
from ptq4dm.training.settings import CalibrationConfig, SamplerConfig


def calls_of(sampler: SamplerConfig) -> int:
    """Records that one image gives: one for each step, two with guidance."""
    return sampler.steps * (1 if sampler.guidance == 1 else 2)


def collect(
    diffusion: Diffusion,
    sampler: SamplerConfig,
    config: CalibrationConfig,
    seed: int,
    folder: Path,
    processes: Processes,
) -> Records:
    """The calibration records, in a shuffled order that the seed decides; `folder` keeps the parts.

    Of all calls of all images (both halves of a guided batch are calls) `config.records` are drawn without
    replacement, uniformly over steps, halves and images (section 3 of the method).
    """
    done = folder / "records.safetensors"
    if done.is_file():
        if processes.first:
            remove(list(folder.glob("part_*")))  # of a run that was killed between the two
    else:
        halves, calls = calls_of(sampler) // sampler.steps, calls_of(sampler)
        generator = torch.Generator().manual_seed(seed_of(seed, CALIBRATION))
        places = torch.randperm(config.images * calls, generator=generator)[: config.records]

        def make(number: int, images: range) -> dict[str, Tensor]:
            chosen = spread(images, config.images, diffusion.conditions)
            parts, orders = [], []

            def watch(step: int, call: Records, _: Tensor) -> None:
                for half in range(halves):
                    first = images.start * calls + step * halves + half
                    offset = places - first  # the place of image i of this batch is first + i * calls
                    kept = (offset >= 0) & (offset < len(images) * calls) & (offset % calls == 0)
                    order = kept.nonzero().flatten()
                    parts.append(call[half * len(images) + offset[order] // calls])
                    orders.append(order)

            denoise(diffusion, sampler, chosen, seed_of(seed, CALIBRATION, number), watch=watch)
            return {**concatenated(parts).tensors(), "order": torch.cat(orders)}

        files = make_parts("collect", folder, batches(config.images, config.batch), make, processes)
        if processes.first:
            tensors = [read_safetensors(file)[0] for file in files]
            order = torch.cat([part.pop("order") for part in tensors])
            concatenated([Records(**part) for part in tensors])[order.argsort()].save(done)
            remove(files)
        processes.wait()
    return Records.load(done)


def make_parts(
    stage: str,
    folder: Path,
    parts: list[range],
    make: Callable[[int, range], dict[str, Tensor]],
    processes: Processes,
) -> list[Path]:
    """One file of tensors for each part of a stage, made once; processes take turns.

    Args:
        make: number and images of a part -> its tensors.
    """
    files = [folder / f"part_{number:05d}.safetensors" for number in range(len(parts))]
    waiting = [number for number in range(len(parts)) if not files[number].is_file()]
    mine = [number for number in waiting if number % processes.count == processes.rank]
    with progress(stage, len(parts), len(parts) - len(waiting), silent=not processes.first) as advance:
        for number in mine:
            save_weights(files[number], make(number, parts[number]))
            advance(processes.count)
    processes.wait()
    return files


def remove(files: list[Path]) -> None:
    """Parts whose sum is kept are not needed any more."""
    for file in files:
        file.unlink(missing_ok=True)
