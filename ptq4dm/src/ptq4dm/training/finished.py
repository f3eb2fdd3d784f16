"""What a finished run of the engine `ldm` holds, read for sampling: `eval`, `sample` and `pack` begin here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from ptq4dm.method.bit_schedule import BitSchedule
from ptq4dm.method.noise_statistics import NoiseStatistics
from ptq4dm.method.quant_model import quantize, set_activation_ranges
from ptq4dm.training.diffusion import Diffusion, load_diffusion
from ptq4dm.training.quantization import Ranges, load_quantized, quant_config, widths
from ptq4dm.training.settings import BitsConfig, ModelConfig, SamplerConfig
from ptq4dm.training.statistics import Schedule, identity, joined, statistics_file

Settings = TypeVar("Settings")


@dataclass
class Finished:
    """A quantised model with everything that was fitted to it.

    Args:
        diffusion: its U-Net is quantised, weights and activations switched on.
        ranges: of the activations, by bit width.
        schedule: time step -> bit width of the activations.
        statistics: of the whole schedule, each row at its step's bit width.
        sampler: the one that they were fitted to.
    """

    diffusion: Diffusion
    ranges: Ranges
    schedule: Schedule
    statistics: NoiseStatistics
    sampler: SamplerConfig
    _width: int = 0

    def before_step(self, timestep: int) -> None:
        """Gives the activations the bit width of a step; to be called before the network is."""
        width = self.schedule[timestep]
        if width != self._width:
            set_activation_ranges(self.diffusion.unet, self.ranges[width])
            self._width = width


def load_run(path: Path, model: str | None = None, device: torch.device | str = "cpu") -> Finished:
    """Reads a run; the float model is read from where it was.

    Args:
        model: where the float model is now, if it was moved.

    Raises:
        UserError: no such run, one of another engine or not finished, a float model that is gone or is another.
    """
    run = RunFolder.open(path)
    options = run.read_config()
    if options.get("engine") != "ldm":
        raise UserError(f"{path} is a run of engine {options.get('engine')}; a run of engine ldm is needed")
    folder = run.path / "model"
    if not (folder / "schedule.json").is_file():
        raise UserError(f"{path} is not finished; `ptq4dm train --resume {path}` goes on with it")
    source = _settings(ModelConfig, options.get("model"), run)
    source.path = model or source.path
    bits = _settings(BitsConfig, options.get("quantization"), run)
    sampler = _settings(SamplerConfig, options.get("sampler"), run)
    diffusion = load_diffusion(source)
    about = identity(diffusion, bits, sampler)
    quantize(diffusion.unet.to(device), quant_config(bits))
    ranges = load_quantized(folder, diffusion.unet, bits)
    statistics = {width: NoiseStatistics.load(statistics_file(folder, width)) for width in widths(bits)}
    for width, of_width in statistics.items():
        of_width.check({**about, "activation_bits": width})
    schedule = BitSchedule.load(folder / "schedule.json").bits()
    if [*schedule] != next(iter(statistics.values())).timesteps.tolist() or not {*schedule.values()} <= ranges.keys():
        raise UserError(f"{folder / 'schedule.json'} is of other steps or bit widths than the run")
    return Finished(diffusion, ranges, schedule, joined(statistics, schedule), sampler)


def _settings(kind: type[Settings], content: Any, run: RunFolder) -> Settings:
    """One group of a run's options.

    Raises:
        UserError: a file that was changed by hand into something else.
    """
    assert is_dataclass(kind)
    known = {field.name for field in fields(kind)}
    if not isinstance(content, Mapping) or not set(content) <= known:
        raise UserError(f"{run.path / 'config.yaml'} has no options {kind.__name__} as this version writes them")
    return kind(**content)
