"""A float diffusion model as the engine uses it: a U-Net, its noise schedule, what it is conditioned on, its decoder.

Shapes: B images, C channels, H height, W width, K conditions (classes or prompts), L context tokens, D context width.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from paperkit.errors import UserError, one_line
from paperkit.files.weights import read_safetensors
from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.trajectories import guided as combined
from ptq4dm.models.compvis import read_compvis
from ptq4dm.models.ddim_scheduler import LDM_SCHEDULE
from ptq4dm.models.latent_diffusion import ClassEmbedding, FirstStage, model_named
from ptq4dm.models.pipelines import DECODERS, EMBEDDINGS, UNETS, decode, network_class, read_network
from ptq4dm.training.settings import ModelConfig


@dataclass
class Diffusion:
    """What is quantised.

    Args:
        unet: the float network, in evaluation mode.
        schedule: configuration of diffusers' DDIM scheduler.
        contexts: (K, L, D) of a network with cross-attention.
        null: (L, D), the context of the unconditional half of a guided batch.
        classes: how many the network embeds by itself (`num_class_embeds`), or 0; the last is the unconditional one.
        decode: latents (B, C, H, W) to images in [-1, 1]; None where the network works on pixels.
    """

    unet: nn.Module
    schedule: dict[str, Any]
    contexts: Tensor | None = None
    null: Tensor | None = None
    classes: int = 0
    decode: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        config: Any = self.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    @property
    def conditions(self) -> int:
        """How many classes or prompts there are to choose from; 0 of an unconditional model."""
        return len(self.contexts) if self.contexts is not None else max(0, self.classes - 1)

    def scheduler(self, steps: int) -> DDIMScheduler:
        """DDIM's, with its steps set."""
        found = DDIMScheduler(**self.schedule)
        found.set_timesteps(steps)
        return found

    def example(self) -> Records:
        """One made-up call, for what only sizes matter to."""
        return self.records(torch.zeros(1, *self.shape), 1, torch.zeros(1, dtype=torch.long), 1.0)

    def check_guidance(self, guidance: float) -> None:
        """Guidance needs something to be guided by.

        Raises:
            UserError: otherwise.
        """
        if guidance != 1 and not self.conditions:
            raise UserError(
                f"sampler.guidance {guidance}: this model has no classes or contexts; 1 is without guidance"
            )
        if guidance != 1 and self.contexts is not None and self.null is None:
            raise UserError(f"sampler.guidance {guidance} needs a context `null` beside the others")

    def records(self, x: Tensor, t: int, chosen: Tensor, guidance: float) -> Records:
        """The call at one step: with guidance the unconditional half of the batch comes first.

        Args:
            x: (B, C, H, W). t: time step.
            chosen: (B,), the condition of each image; ignored by an unconditional model.
        """
        guided = guidance != 1
        context = labels = None
        if self.contexts is not None:
            context = self.contexts[chosen]
            if guided and self.null is not None:
                context = torch.cat([self.null.expand_as(context), context])
        elif self.classes:
            labels = torch.cat([torch.full_like(chosen, self.classes - 1), chosen]) if guided else chosen
        x = torch.cat([x, x]) if guided else x
        return Records(x, torch.full((len(x),), t), context, labels)


def guided(unet: nn.Module, call: Records, guidance: float) -> Tensor:
    """The noise prediction (B, C, H, W) of a call: `uncond + guidance * (cond - uncond)`."""
    out = predict(unet, call.to(next(unet.parameters()).device)).cpu()
    if guidance == 1:
        return out
    unconditional, conditional = out.chunk(2)
    return combined(unconditional, conditional, guidance)


def load_diffusion(config: ModelConfig) -> Diffusion:
    """Reads the float model; nothing in its files is executed.

    Raises:
        UserError: no model named, a folder or file that is none, a network that does not predict noise.
    """
    if config.path is None:
        raise UserError("model.path names no float model: a folder of diffusers, or a CompVis file (model.ckpt)")
    path = Path(config.path)
    if path.is_file():
        return _compvis(path, config)
    if not path.is_dir():
        raise UserError(f"no model at {path}: neither a folder of diffusers nor a file")
    folder = path / "unet" if (path / "unet").is_dir() else path
    if network_class(folder) is None:
        raise UserError(f"{folder} is no folder of a network of diffusers: its config.json names no class")
    unet = read_network(folder, UNETS)
    options: Any = unet.config
    if options.out_channels != options.in_channels:
        raise UserError(
            f"{path}: the U-Net gives {options.out_channels} channels for {options.in_channels}, so not noise alone"
        )
    scheduler = path / "scheduler" / "scheduler_config.json"
    diffusion = Diffusion(unet, _schedule(scheduler) if scheduler.is_file() else dict(LDM_SCHEDULE))
    diffusion.classes = options.get("num_class_embeds") or 0
    if "cross_attention_dim" in options:
        _read_contexts(path, config.contexts, diffusion)
        assert diffusion.contexts is not None
        if diffusion.contexts.shape[-1] != options.cross_attention_dim:
            raise UserError(
                f"{config.contexts or path} has contexts of width {diffusion.contexts.shape[-1]}; the U-Net takes "
                f"{options.cross_attention_dim}"
            )
    for folder in _parts(path, DECODERS):
        diffusion.decode = decoder(read_network(folder))
    return diffusion


def decoder(first_stage: FirstStage) -> Callable[[Tensor], Tensor]:
    """Latents (B, C, H, W) to images (B, 3, H', W') in about [-1, 1]."""
    return torch.no_grad()(partial(decode, first_stage))


def _compvis(path: Path, config: ModelConfig) -> Diffusion:
    described = None if config.network is None else model_named(config.network)
    networks, described = read_compvis(path, described, trust_pickle=config.trust_pickle)
    schedule = _plain(described.scheduler())
    diffusion = Diffusion(networks.unet, schedule, decode=decoder(networks.first_stage))
    if networks.embedding is not None:
        _set_classes(diffusion, networks.embedding)
    return diffusion


def _read_contexts(path: Path, file: str | None, diffusion: Diffusion) -> None:
    """Of a file, or of the class embedding beside the U-Net."""
    if file is not None:
        tensors, _ = read_safetensors(file)
        if "contexts" not in tensors or tensors["contexts"].dim() != 3:
            raise UserError(f"{file} holds no tensor `contexts` (prompts, tokens, width)")
        diffusion.contexts, diffusion.null = tensors["contexts"], tensors.get("null")
        one = diffusion.contexts.shape[1:]
        if diffusion.null is not None and diffusion.null.shape != one:
            raise UserError(f"{file}: `null` has shape {tuple(diffusion.null.shape)}, and a context {tuple(one)}")
        return
    for folder in _parts(path, EMBEDDINGS):
        _set_classes(diffusion, read_network(folder))
        return
    raise UserError(f"{path} is conditioned on a context: name a file of them with --model.contexts")


def _set_classes(diffusion: Diffusion, embedding: ClassEmbedding) -> None:
    rows = embedding.embedding.weight.detach()[:, None]
    diffusion.contexts, diffusion.null = rows[: embedding.null_class], rows[embedding.null_class]


def _parts(path: Path, classes: Mapping[str, type[Any]]) -> list[Path]:
    """Folders of a pipeline that hold one of these networks."""
    return [folder for folder in sorted(path.iterdir()) if folder.is_dir() and network_class(folder) in classes]


def _schedule(path: Path) -> dict[str, Any]:
    """A pipeline's schedule as DDIM's, whatever scheduler it names."""
    try:
        scheduler = DDIMScheduler.from_config(json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:
        raise UserError(f"{path} is no schedule for DDIM: {one_line(str(error))[:200]}") from error
    if scheduler.config.prediction_type != "epsilon":
        raise UserError(f"{path}: the network predicts {scheduler.config.prediction_type}; the method needs epsilon")
    return _plain(scheduler)


def _plain(scheduler: DDIMScheduler) -> dict[str, Any]:
    """Its own options; a file of another scheduler's leaves more."""
    known = inspect.signature(DDIMScheduler.__init__).parameters
    return {key: value for key, value in dict(scheduler.config).items() if key in known}
