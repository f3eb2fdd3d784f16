"""The quantised U-Net of a run, whichever engine made it: what `pack` and `export` begin with."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from ptq4dm.method.quant_model import ActivationRange


@dataclass(frozen=True)
class QuantisedRun:
    """A quantised network, its activation ranges by bit width and its bit schedule, where it has them."""

    unet: nn.Module
    ranges: Mapping[int, Mapping[str, ActivationRange]] | None = None
    schedule: Mapping[int, int] | None = None


def open_quantised(path: Path, seed: int | None = None, width: str = "w4a8", model: str | None = None) -> QuantisedRun:
    """Reads a run.

    Args:
        seed, width: network of an embedded experiment; without a seed its first.
        model: where the float model of an `ldm` run is now.

    Raises:
        UserError: no run, one that is not finished, a seed or width that it does not have.
    """
    run = RunFolder.open(path)
    options = run.read_config()
    if options.get("engine") == "ldm":
        from ptq4dm.training.finished import load_run

        finished = load_run(run.path, model)
        mixed = len(finished.ranges) > 1
        return QuantisedRun(finished.diffusion.unet, finished.ranges, finished.schedule if mixed else None)
    from ptq4dm.experiment.calibrated import load_quantised
    from ptq4dm.experiment.run import seed_folder
    from ptq4dm.experiment.settings import WIDTHS, ExperimentConfig

    if width not in WIDTHS:
        raise UserError(f"width {width} is none of {', '.join(WIDTHS)}")
    config = ExperimentConfig(**{f.name: options[f.name] for f in fields(ExperimentConfig) if f.name in options})
    seed = config.first_seed if seed is None else seed
    if seed not in config.seed_list:
        raise UserError(f"{path} has no seed {seed}; it has {', '.join(map(str, config.seed_list))}")
    return QuantisedRun(load_quantised(seed_folder(run.path, seed), width, config))
