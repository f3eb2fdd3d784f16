"""Pipelines of diffusers for latent diffusion: class-conditional with guidance, and unconditional.

diffusers has neither: its own unconditional one is deprecated, and its class-conditional one is for transformers. Any
scheduler of diffusers serves; it gets the guided prediction, as the noise correction needs it.

Shapes: B batch, C latent channels, H, W sides of a latent.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from paperkit.data.seeding import seed_of
from paperkit.errors import UserError, one_line
from paperkit.files.bounded import read_json
from paperkit.files.keys import first_few
from paperkit.files.weights import check_finite
from ptq4dm.models.latent_diffusion import ClassEmbedding, FirstStage, FixedHeadsUNet2DModel, UNet

Generators = torch.Generator | list[torch.Generator] | None
ROUNDINGS = ("round", "truncate")


def to_uint8(images: Tensor, rounding: str = "round") -> Tensor:
    """Decoded images (B, 3, H, W) in [-1, 1] to whole numbers 0 to 255, (B, H, W, 3), by `(x + 1) * 127.5`, once.

    The authors' script maps to [0, 1] first and then again: its images are washed out, and so is their FID.

    Args:
        rounding: `round`, to the nearest; `truncate`, as OpenAI's scripts do. Figures of FID differ between the two.
    """
    scaled = ((images.float() + 1) * 127.5).clamp(0, 255)
    scaled = scaled.round() if rounding == "round" else scaled
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def decode(first_stage: FirstStage, latents: Tensor) -> Tensor:
    """Latents (B, C, H, W), as they are denoised, to images in about [-1, 1]; `vq` takes the nearest code first."""
    images: Tensor = first_stage.decode(latents / first_stage.config["scaling_factor"], return_dict=False)[0]
    return images


def _takes(function: Any, **named: Any) -> dict[str, Any]:
    """Those of the arguments that `function` has: schedulers differ in theirs."""
    return {name: value for name, value in named.items() if name in inspect.signature(function).parameters}


class _LatentPipeline(DiffusionPipeline):
    """What both pipelines share: the loop, and images from latents."""

    unet: UNet
    vae: FirstStage | None
    scheduler: Any

    def _latents(self, count: int, generator: Generators, given: Tensor | None) -> Tensor:
        size = self.unet.config["sample_size"]
        sides = (size, size) if isinstance(size, int) else size
        shape = (count, self.unet.config["in_channels"], *sides)
        if given is not None and given.shape != shape:
            raise UserError(f"latents of shape {tuple(given.shape)}; {shape} are needed")
        like = dict(device=self._execution_device, dtype=self.unet.dtype)
        latents = randn_tensor(shape, generator=generator, **like) if given is None else given.to(**like)
        start: Tensor = latents * self.scheduler.init_noise_sigma
        return start

    def _denoised(
        self, latents: Tensor, steps: int, eta: float, generator: Generators, tokens: Tensor | None, guidance: float
    ) -> Tensor:
        """The sampling loop. `tokens` (2B, 1, D) or (B, 1, D): with guidance, those of no class stand first."""
        self.scheduler.set_timesteps(steps, device=latents.device)
        more = _takes(self.scheduler.step, eta=eta, generator=generator)
        guided = tokens is not None and len(tokens) == 2 * len(latents)
        for t in self.progress_bar(self.scheduler.timesteps):
            x = self.scheduler.scale_model_input(latents, t)
            x = torch.cat([x, x]) if guided else x
            named = {} if tokens is None else {"encoder_hidden_states": tokens}
            eps = self.unet(x, t, return_dict=False, **named)[0]
            if guided:
                without, conditional = eps.chunk(2)
                eps = without + guidance * (conditional - without)
            latents = self.scheduler.step(eps, t, latents, return_dict=False, **more)[0]
        return latents

    def _output(self, latents: Tensor, output_type: str, return_dict: bool) -> ImagePipelineOutput | tuple[Any, ...]:
        """Latents as `latent`, images (B, 3, H, W) in [-1, 1] as `pt`, (B, H, W, 3) in [0, 1] as `np`, or `pil`."""
        images: Any = latents if output_type == "latent" or self.vae is None else decode(self.vae, latents)
        if output_type == "np":
            images = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        elif output_type == "pil":
            images = [Image.fromarray(pixels) for pixels in to_uint8(images).cpu().numpy()]
        elif output_type not in ("latent", "pt"):
            raise UserError(f"output_type {output_type!r}; it is one of pil, np, pt, latent")
        return ImagePipelineOutput(images=images) if return_dict else (images,)


class UnconditionalLDMPipeline(_LatentPipeline):
    """Latent diffusion without a condition, as for LSUN bedrooms and churches.

    Args:
        unet: `UNet2DModel`. vae: the first stage; None where pixels are denoised. scheduler: any of diffusers.
    """

    _optional_components = ["vae"]  # noqa: RUF012  # as diffusers declares it

    def __init__(self, unet: UNet, vae: FirstStage | None, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 200,
        eta: float = 1.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any, ...]:
        """Draws images; 200 steps with eta 1 is the paper's setting for the bedrooms.

        Args:
            batch_size: B, of how many images.
            num_inference_steps, eta: of the sampler.
            generator: one, or one for each image, which then does not depend on the batch around it.
            latents: starting noise (B, C, H, W) instead of one drawn.
            output_type: `pil`, `np`, `pt` or `latent`.
        """
        start = self._latents(batch_size, generator, latents)
        return self._output(
            self._denoised(start, num_inference_steps, eta, generator, None, 1.0), output_type, return_dict
        )


class ClassConditionalLDMPipeline(_LatentPipeline):
    """Latent diffusion of classes with classifier-free guidance, as for ImageNet.

    Args:
        unet: `UNet2DConditionModel`. vae: the first stage. class_embedding: its condition. scheduler: any of diffusers.
    """

    class_embedding: ClassEmbedding

    def __init__(self, unet: UNet, vae: FirstStage, class_embedding: ClassEmbedding, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, class_embedding=class_embedding, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 3.0,
        num_inference_steps: int = 20,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any, ...]:
        """Draws an image of every label; 20 steps with eta 0 and guidance 3.0 is the paper's first setting.

        Args:
            class_labels: B classes, 0 to the number of classes - 1; the last one is "no class".
            guidance_scale: weight of the condition; 1 needs no second half of the batch.
            num_inference_steps, eta, generator, latents, output_type: as in the unconditional pipeline.

        Raises:
            UserError: a label that is no class.
        """
        null = self.class_embedding.null_class
        if wrong := [label for label in class_labels if not 0 <= label <= null]:
            raise UserError(f"class {wrong[0]} is outside 0 to {null}")
        labels = torch.tensor(list(class_labels), device=self._execution_device)
        if guidance_scale != 1:
            labels = torch.cat([torch.full_like(labels, null), labels])
        tokens = self.class_embedding(labels).to(self.unet.dtype)
        start = self._latents(len(class_labels), generator, latents)
        latents = self._denoised(start, num_inference_steps, eta, generator, tokens, guidance_scale)
        return self._output(latents, output_type, return_dict)


Pipeline = UnconditionalLDMPipeline | ClassConditionalLDMPipeline
UNETS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (UNet2DModel, UNet2DConditionModel, FixedHeadsUNet2DModel)
}
DECODERS: dict[str, type[Any]] = {kind.__name__: kind for kind in (VQModel, AutoencoderKL)}
EMBEDDINGS: dict[str, type[Any]] = {ClassEmbedding.__name__: ClassEmbedding}
NETWORKS = UNETS | DECODERS | EMBEDDINGS
"""What a folder may name: nothing is imported because a file says so."""
PARTS = ("unet", "scheduler", "vae", "vqvae", "class_embedding")


def is_pipeline(folder: str | Path) -> bool:
    """Whether a folder has the parts of a pipeline."""
    return (Path(folder) / "scheduler").is_dir()


def load_pipeline(folder: str | Path, unet: Any = None) -> Pipeline:
    """A pipeline from a folder of parts: `unet`, `scheduler`, and for latents `vae` (or `vqvae`), `class_embedding`.

    Such are ours, and diffusers' `DDPMPipeline`, `DDIMPipeline` and unconditional `LDMPipeline`, whose ancestral
    scheduler becomes that of DDIM, which has its steps at eta 1.

    Args:
        unet: takes the place of the folder's, which need not be there then.

    Raises:
        UserError: no such folder, further parts, parts of other classes, weights that are missing or do not fit.
    """
    folder = Path(folder)
    if not is_pipeline(folder):
        raise UserError(f"{folder} is no folder of a pipeline: it has no scheduler")
    parts = {path.name for path in folder.iterdir() if path.is_dir()}
    if further := sorted(parts - {*PARTS}):
        raise UserError(f"{folder} is of another pipeline: it has {first_few(further)} beside {', '.join(PARTS)}")
    scheduler, unet = _scheduler(folder / "scheduler"), unet or read_network(folder / "unet")
    first_stage = next((read_network(folder / name) for name in ("vae", "vqvae") if name in parts), None)
    if "class_embedding" in parts:
        if first_stage is None:
            raise UserError(f"{folder} has a class embedding and no first stage (vae)")
        return ClassConditionalLDMPipeline(unet, first_stage, read_network(folder / "class_embedding"), scheduler)
    if unet.config.get("cross_attention_dim") is not None:
        raise UserError(f"{folder} has a U-Net with contexts and no class_embedding to give them")
    return UnconditionalLDMPipeline(unet, first_stage, scheduler)


def network_class(folder: Path) -> str | None:
    """The class that the config.json of a network's folder names; None where there is none."""
    path = folder / "config.json"
    return _class_of(path, "config") or None if path.is_file() else None


def read_network(folder: Path, kinds: Mapping[str, type[Any]] = NETWORKS) -> Any:
    """One network of a diffusers folder, float32, in evaluation mode.

    Args:
        kinds: classes that it may be of, by name; no other is built.

    Raises:
        UserError: no such folder, another class, or weights that are missing (diffusers would fill them with random
            numbers), that do not fit, or that hold no numbers.
    """
    name = _class_of(folder / "config.json", "config")
    if name not in kinds:
        raise UserError(f"{folder} holds a {name[:80]}, which is none of {', '.join(kinds)}")
    try:
        with quiet_diffusers():
            network, told = kinds[name].from_pretrained(
                folder, local_files_only=True, output_loading_info=True, torch_dtype=torch.float32
            )
    except Exception as error:  # diffusers and safetensors raise nearly every class on damaged files
        raise UserError(f"{folder} cannot be read as a {name}: {one_line(str(error))[:200]}") from error
    if wrong := [*told["missing_keys"], *told["unexpected_keys"]]:
        raise UserError(f"{folder} does not fit its config.json: {first_few(sorted(wrong))}")
    check_finite(network.state_dict(), folder)
    return network.eval()


def _class_of(path: Path, what: str) -> str:
    content = read_json(path, what)
    return str(content.get("_class_name", "")) if isinstance(content, dict) else ""


def _scheduler(folder: Path) -> Any:
    path = folder / "scheduler_config.json"
    told = _class_of(path, "scheduler config")
    # A correcting scheduler is DDIM's until it is given statistics, and a folder has none.
    name = "DDIMScheduler" if told in ("DDPMScheduler", "PTQDScheduler") else told
    kind: Any = getattr(diffusers, name, None)
    known: bool = isinstance(kind, type) and issubclass(kind, SchedulerMixin)
    if not known:
        raise UserError(f"{folder} has a scheduler of class {name[:80]!r}, which diffusers does not know")
    try:
        with quiet_diffusers():
            return kind.from_config(read_json(path, "scheduler config"))
    except (TypeError, ValueError, RuntimeError) as error:  # diffusers names a schedule it lacks by the last
        raise UserError(f"{folder} cannot be read as a {name}: {one_line(str(error))[:200]}") from error


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without diffusers' own notes and bars on reading and writing; ours say what is done."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def draw(
    pipeline: Pipeline, first: int, labels: Sequence[int | None], seed: int, steps: int, eta: float, guidance: float
) -> Tensor:
    """Images number `first` and following, (B, 3, H, W) in about [-1, 1].

    Every image has a generator of its own, a function of (seed, number): it does not depend on the batch size.

    Args:
        labels: B classes; None in each place for an unconditional pipeline.
    """
    generators = [torch.Generator().manual_seed(seed_of(seed, first + i)) for i in range(len(labels))]
    common: dict[str, Any] = dict(
        num_inference_steps=steps, eta=eta, generator=generators, output_type="pt", return_dict=False
    )
    if isinstance(pipeline, ClassConditionalLDMPipeline):
        classes = [label for label in labels if label is not None]
        images: Tensor = pipeline(classes, guidance_scale=guidance, **common)[0]
    else:
        images = pipeline(len(labels), **common)[0]
    return images
