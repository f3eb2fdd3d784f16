"""What images are drawn from: a float pipeline, a quantised run, or a packed U-Net, each corrected or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from ptq4dm.deployment.packed_folder import load_packed
from ptq4dm.deployment.packed_unet import PackedUNet
from ptq4dm.deployment.sampling import Sampling
from ptq4dm.method.noise_statistics import NoiseStatistics
from ptq4dm.models.conversion import described, load_any
from ptq4dm.models.ddim_scheduler import PTQDScheduler
from ptq4dm.models.pipelines import ClassConditionalLDMPipeline, Pipeline, is_pipeline
from ptq4dm.training.finished import Finished, load_run

CONDITIONAL: Mapping[str, Any] = {"steps": 20, "eta": 0.0, "guidance": 3.0}
UNCONDITIONAL: Mapping[str, Any] = {"steps": 200, "eta": 1.0, "guidance": 1.0}
"""The paper's first setting on ImageNet, and its setting on LSUN bedrooms."""


@dataclass
class Source:
    """A pipeline ready to be sampled.

    Args:
        pipeline: with its U-Net and scheduler.
        about: what they are, in words.
        defaults: steps, eta and guidance where the user names none.
        statistics: what its scheduler corrects by.
    """

    pipeline: Pipeline
    about: dict[str, Any]
    defaults: dict[str, Any]
    statistics: NoiseStatistics | None = None

    def check(self, sampling: Sampling) -> None:
        """Statistics belong to one sampler.

        Raises:
            UserError: they were collected with other steps, another eta or another guidance.
        """
        if self.statistics is not None:
            asked = {"steps": sampling.steps, "eta": sampling.eta, "guidance": sampling.guidance}
            known = self.statistics.identity
            self.statistics.check({name: value for name, value in asked.items() if name in known})


def open_source(
    ckpt: str,
    packed: str | None,
    statistics: str | None,
    corrected: bool,
    device: torch.device,
    trust_pickle: bool,
    name: str | None = None,
    configuration: str | None = None,
) -> Source:
    """Reads what is to be sampled.

    Args:
        ckpt: folder of a pipeline, CompVis file, or run of the engine `ldm`.
        packed: folder of a packed U-Net that takes the place of the pipeline's.
        statistics: file to correct by; a run has its own, which `corrected` turns off.
        name, configuration: which model a CompVis file is.

    Raises:
        UserError: what cannot be read, options that exclude each other, or a packed U-Net or statistics of other bits
            than the run's.
    """
    model = described(name, configuration)
    found = None if statistics is None else NoiseStatistics.load(statistics)
    about: dict[str, Any] = {"weights": ckpt, "unet": "float32"}
    unet: Any = None
    if packed is not None:
        unet = load_packed(packed)
        about["unet"] = f"packed integers of {packed}"
    defaults: dict[str, Any] | None = None
    if Path(ckpt).is_dir() and not is_pipeline(ckpt):
        run = RunFolder.open(ckpt)
        finished = load_run(run.path, device=device)
        if unet is None:
            unet = finished.diffusion.unet
            follow_schedule(finished)
            about["unet"] = "simulated quantisation"
        else:
            _check_packed(unet, finished)
        options = run.read_config()["model"]
        pipeline = load_any(
            options["path"], described(options.get("network"), None), bool(options.get("trust_pickle")), unet
        )
        sampler = finished.sampler
        defaults = {"steps": sampler.steps, "eta": sampler.eta, "guidance": sampler.guidance}
        if found is not None:  # of any sampler, which is checked when it is known
            own = finished.statistics.identity
            found.check({name: own[name] for name in ("model", "weight_bits") if name in found.identity})
        if corrected and found is None:
            found, statistics = finished.statistics, "of the run"
    else:
        pipeline = load_any(ckpt, model, trust_pickle, unet)
    conditional = isinstance(pipeline, ClassConditionalLDMPipeline)
    about["correction"] = "none" if found is None else statistics
    if found is not None:
        correct(pipeline, found)
    pipeline.to(device)
    return Source(pipeline, about, defaults or dict(CONDITIONAL if conditional else UNCONDITIONAL), found)


def _check_packed(unet: PackedUNet, finished: Finished) -> None:
    """A run's statistics belong to its own bits, whatever computes with them."""
    schedule = finished.schedule if len(finished.ranges) > 1 else {}
    weights = {layer.weight_bits for layer in unet.packed_layers().values()}
    bits = finished.statistics.identity["weight_bits"]
    if {*unet.widths} != {*finished.ranges} or unet.schedule != schedule or bits not in weights:
        raise UserError(
            f"the packed U-Net has weights of {sorted(weights)} bits and inputs of {sorted(unet.widths)}; the run has "
            f"W{bits} and inputs of {sorted(finished.ranges)}, with one bit schedule: pack the run again"
        )


def correct(pipeline: Pipeline, statistics: NoiseStatistics, **options: Any) -> None:
    """Gives the pipeline the scheduler that corrects its noise by `statistics`; options are the scheduler's."""
    scheduler: Any = PTQDScheduler.from_config(pipeline.scheduler.config, **options)
    scheduler.set_statistics(statistics)
    pipeline.register_modules(scheduler=scheduler)


def follow_schedule(finished: Finished) -> None:
    """Before every call of the U-Net, gives its activations the bit width of that step."""

    def before(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        timestep = inputs[1] if len(inputs) > 1 else named["timestep"]
        try:
            finished.before_step(int(torch.as_tensor(timestep).flatten()[0]))
        except KeyError as error:
            raise UserError(
                f"the run's bit schedule has no step {error}: sample with its own number of steps"
            ) from error

    finished.diffusion.unet.register_forward_pre_hook(before, with_kwargs=True)
