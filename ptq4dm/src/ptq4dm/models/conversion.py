"""CompVis checkpoints as folders of a pipeline, and back, tensor for tensor."""

from pathlib import Path
from typing import Any

from paperkit.errors import UserError
from paperkit.files.hub import replaced_folder
from paperkit.files.weights import read_safetensors, save_checkpoint, save_weights
from ptq4dm.models.compvis import Networks, Weights, official_state, read_compvis, read_configuration
from ptq4dm.models.latent_diffusion import LatentDiffusion, model_named
from ptq4dm.models.pipelines import (
    ClassConditionalLDMPipeline,
    Pipeline,
    UnconditionalLDMPipeline,
    load_pipeline,
    quiet_diffusers,
)

REST = "rest.safetensors"
"""What no network takes: schedule buffers, the loss of the first stage, and the U-Net's other set of weights."""


def described(name: str | None, configuration: str | None) -> LatentDiffusion | None:
    """A model by its name or its official configuration file; None where neither is given.

    Raises:
        UserError: an unknown name, an unreadable file, or both.
    """
    if name is not None and configuration is not None:
        raise UserError(f"a model is told by its name ({name}) or its configuration ({configuration}), not by both")
    if configuration is not None:
        return read_configuration(configuration)
    return None if name is None else model_named(name)


def pipeline_of(networks: Networks, model: LatentDiffusion) -> Pipeline:
    """The networks of a checkpoint as a pipeline with the official sampler."""
    if networks.embedding is None:
        return UnconditionalLDMPipeline(networks.unet, networks.first_stage, model.scheduler())
    return ClassConditionalLDMPipeline(networks.unet, networks.first_stage, networks.embedding, model.scheduler())


def load_any(
    source: str | Path, model: LatentDiffusion | None = None, trust_pickle: bool = False, unet: Any = None
) -> Pipeline:
    """A pipeline from its folder, or from a CompVis checkpoint; `unet` takes the place of theirs.

    Raises:
        UserError: as `load_pipeline` and `read_compvis`.
    """
    if Path(source).is_dir():
        return load_pipeline(source, unet)
    networks, model = read_compvis(source, model, trust_pickle=trust_pickle)
    networks.unet = networks.unet if unet is None else unet
    return pipeline_of(networks, model)


def to_folder(
    file: str | Path,
    folder: str | Path,
    model: LatentDiffusion | None = None,
    weights: Weights = "auto",
    trust_pickle: bool = False,
) -> str:
    """Writes a CompVis checkpoint as a folder of a pipeline, whole or not at all; returns what was done, in a line.

    Raises:
        UserError: a folder that has files already; as `read_compvis`; `cannot write <folder>`.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} has files already: name a new folder")
    networks, model = read_compvis(file, model, weights, trust_pickle)
    pipeline = pipeline_of(networks, model)
    with replaced_folder(folder) as temporary, quiet_diffusers():
        pipeline.save_pretrained(temporary)
        save_weights(temporary / REST, networks.rest, {"ema": str(networks.ema)})
    count = sum(parameter.numel() for parameter in networks.unet.parameters())
    which = "averaged" if networks.ema else "plain"
    return f"{folder}: {type(pipeline).__name__}, U-Net of {count / 1e6:.2f} M {which} weights"


def to_file(folder: str | Path, file: str | Path) -> str:
    """Writes a folder that `to_folder` made as a checkpoint again; returns what was done, in a line.

    Raises:
        UserError: a folder that is none, or was not made from a checkpoint; `cannot write <file>`.
    """
    rest_file = Path(folder) / REST
    if not rest_file.is_file():
        raise UserError(f"{folder} was not made from a checkpoint: it has no {REST}")
    pipeline: Any = load_pipeline(folder)
    rest, about = read_safetensors(rest_file)
    embedding = getattr(pipeline, "class_embedding", None)
    state = official_state(Networks(pipeline.unet, pipeline.vae, embedding, rest, about.get("ema") == "True"))
    save_checkpoint(file, {"state_dict": state})
    return f"{file}: {len(state)} tensors under state_dict"
