"""Checkpoints of the authors of latent diffusion (CompVis): their keys and ours, both ways.

A file's `state_dict` holds the U-Net twice (plain, and as an average under keys without dots), the first stage, the
class embedding, and buffers. What no module takes is kept aside, so the way back gives the same tensors.

Shapes: C channels, H heads.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.keys import first_few, load_strict
from paperkit.files.pickles import named_classes
from paperkit.files.settings import read_settings
from paperkit.files.weights import Allowed, read_weights
from ptq4dm.models.latent_diffusion import (
    MODELS,
    ClassEmbedding,
    FirstStage,
    FirstStageOptions,
    LatentDiffusion,
    UNet,
    UNetOptions,
    build_first_stage,
    build_unet,
)

Weights = Literal["auto", "ema", "plain"]

UNET, EMA, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
EMA_UNET = EMA + "diffusion_model"
EMBEDDING, SCALE = "cond_stage_model.embedding.weight", "scale_factor"

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_out.0": "proj_out", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv"}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
PLACE = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def official_name(unet: UNet, name: str) -> str:
    """The authors' name of a layer or parameter of `unet`; the three projections of an AttentionBlock share one.

    Args:
        name: of diffusers, with whatever follows the layer's own name (`.weight`, `.act_quantizer.delta`).
    """
    for ours, theirs in ENDS.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    found = PLACE.fullmatch(name)
    if found is None:
        raise UserError(f"{name} is no layer of an official U-Net")
    half, level, kind, number, inner = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    per_level = int(unet.config["layers_per_block"]) + 1
    if kind == "attentions":
        inner = inner if isinstance(unet, UNet2DConditionModel) else _renamed(inner, ATTENTION)
    elif inner == "conv" or inner.startswith("conv."):  # a plain resampler
        inner = inner if kind == "upsamplers" else f"op{inner.removeprefix('conv')}"
    else:
        inner = _renamed(inner, RESNET)
    if half is None:
        return f"middle_block.{2 * number if kind == 'resnets' else 1}.{inner}"
    if half == "down":
        block = 1 + level * per_level + (per_level - 1 if kind == "downsamplers" else number)
        return f"input_blocks.{block}.{1 if kind == 'attentions' else 0}.{inner}"
    block = level * per_level + (per_level - 1 if kind == "upsamplers" else number)
    has_attention = getattr(unet.up_blocks[level], "attentions", None) is not None
    place = {"resnets": 0, "attentions": 1}.get(kind, 2 if has_attention else 1)
    return f"output_blocks.{block}.{place}.{inner}"


def _renamed(inner: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if inner == ours or inner.startswith(f"{ours}."):
            return theirs + inner.removeprefix(ours)
    return inner


def unet_names(unet: UNet) -> dict[str, tuple[str, ...]]:
    """Official key -> ours: one, or the three of a qkv projection in the order q, k, v."""
    names: dict[str, tuple[str, ...]] = {}
    for name in unet.state_dict():
        official = official_name(unet, name)
        names[official] = (*names.get(official, ()), name)
    return names


def first_stage_names(first_stage: FirstStage) -> dict[str, tuple[str, ...]]:
    """Official key -> ours, of an autoencoder."""
    last = len(first_stage.config["block_out_channels"]) - 1
    names: dict[str, tuple[str, ...]] = {}
    for name in first_stage.state_dict():
        key = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", name)
        key = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", key)
        key = re.sub(r"\.up_blocks\.(\d+)\.resnets\.", lambda m: f".up.{last - int(m[1])}.block.", key)
        key = re.sub(r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".up.{last - int(m[1])}.upsample.", key)
        key = re.sub(r"\.mid_block\.resnets\.(\d+)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", key)
        key = key.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
        if ".mid_block.attentions.0." in key:
            before, inner = key.split(".mid_block.attentions.0.")
            places = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
            key = f"{before}.mid.attn_1.{_renamed(inner, places)}"
        names[key] = (name,)
    return names


def to_official(model: nn.Module, names: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The model's state dict under official keys; what were convolutions over positions there are so again."""
    state = model.state_dict()
    found = {}
    for official, ours in names.items():
        tensor = _joined([state[name] for name in ours], _heads(model, ours[0])) if len(ours) == 3 else state[ours[0]]
        found[official] = tensor.reshape(*tensor.shape, *_ones(official, ours[0])) if tensor.dim() == 2 else tensor
    return found


def load_official(
    model: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]], source: str
) -> None:
    """Copies a state dict under official keys into the model.

    Raises:
        UserError: missing, unexpected and misshapen keys, as the file names them.
    """
    fitting: dict[str, Tensor] = {}
    for key, tensor in state.items():
        ours = names.get(key)
        if ours is None:
            fitting[key] = tensor
            continue
        extra = len(_ones(key, ours[0]))
        flat = tensor.flatten(1) if extra and tensor.dim() == 2 + extra and tensor.shape[2:].numel() == 1 else tensor
        fits = len(ours) == 3 and not len(flat) % (3 * _heads(model, ours[0]))
        parts = _split(flat, _heads(model, ours[0])) if fits else [flat]
        fitting |= dict(zip(ours, parts, strict=False))
    if missing := [key for key in names if key not in state]:
        raise UserError(f"{source} does not fit {type(model).__name__}: missing {first_few(missing)}")
    load_strict(model, fitting, source)


def _heads(model: nn.Module, name: str) -> int:
    heads = model.get_submodule(name.rpartition(".to_")[0]).heads
    assert isinstance(heads, int)
    return heads


def _ones(official: str, ours: str) -> tuple[int, ...]:
    """The further dimensions that a linear layer's weight of ours has in the file."""
    if not official.endswith(".weight"):
        return ()
    if ".mid.attn_1." in official and ".norm." not in official:
        return (1, 1)
    return (1,) if ".qkv." in official or (".proj_out." in official and ".to_out." in ours) else ()


def _split(tensor: Tensor, heads: int) -> list[Tensor]:
    """(3C, ...) -> three (C, ...): the rows stand head by head, within a head q, k and v."""
    by_head = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
    return [by_head[:, index].flatten(0, 1) for index in range(3)]


def _joined(parts: Iterable[Tensor], heads: int) -> Tensor:
    """The other way round: q, k and v, each (C, ...), to (3C, ...)."""
    return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], 1).flatten(0, 2)


class _Inert(dict[Any, Any]):
    """Stands in a file's pickle for an object of training, which is left unread; a dict, since some are filled so."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


HARMLESS = ("pytorch_lightning.", "lightning.", "omegaconf.", "ldm.", "main.", "__main__.")
"""Names of training's own objects in released files. They are never built: an empty object takes their place."""


def _stand_ins(path: Path) -> list[Allowed]:
    return [(_Inert, name) for name in {*named_classes(path)} if name.startswith(HARMLESS)]


@dataclass
class Networks:
    """What a checkpoint holds.

    Args:
        unet, first_stage: the networks.
        embedding: of the classes; None in an unconditional model.
        rest: tensors that none of them took, under the file's keys.
        ema: the U-Net's weights were the average.
    """

    unet: UNet
    first_stage: FirstStage
    embedding: ClassEmbedding | None
    rest: dict[str, Tensor] = field(default_factory=dict)
    ema: bool = False


def read_compvis(
    path: str | Path, model: LatentDiffusion | None = None, weights: Weights = "auto", trust_pickle: bool = False
) -> tuple[Networks, LatentDiffusion]:
    """Reads a released checkpoint without running anything in it.

    Args:
        path: `model.ckpt`.
        model: which it is; None recognises the three of the paper.
        weights: of the U-Net: the average, the plain ones, or what the model's own configuration says.
        trust_pickle: run whatever the file asks for.

    Raises:
        UserError: unreadable, not to be recognised, without the chosen weights, or keys that do not fit.
    """
    path = Path(path)
    state = read_weights(path, trust_pickle, _stand_ins(path) if path.is_file() else ())
    model = recognised(state, str(path)) if model is None else model
    ema = model.use_ema if weights == "auto" else weights == "ema"
    scale = state[SCALE].item() if SCALE in state and state[SCALE].numel() == 1 else 1.0
    with torch.device("meta"):  # no numbers are drawn for weights that come from the file
        networks = Networks(
            build_unet(model.unet).eval(),
            build_first_stage(model.first_stage, scale).eval(),
            None if model.classes is None else ClassEmbedding(model.classes, model.unet.context_dim or 0).eval(),
            ema=ema,
        )
    for network in (networks.unet, networks.first_stage, networks.embedding):
        if network is not None:
            network.to_empty(device="cpu")
    names = unet_names(networks.unet)
    keys = _unet_keys(names, ema)
    if ema and not any(key in state for key in keys.values()):
        raise UserError(f"{path} has no averaged weights (model_ema.*), from which this model samples; take plain ones")
    taken = {key: official for official, key in keys.items()}
    of_unet: dict[str, Tensor] = {}
    of_first_stage: dict[str, Tensor] = {}
    first_names = first_stage_names(networks.first_stage)
    for key, tensor in state.items():
        if key in taken:
            of_unet[taken[key]] = tensor
        elif key.startswith(EMA_UNET if ema else UNET):  # one that the network lacks: let the loading name it
            of_unet[key] = tensor
        elif key.startswith((FIRST_STAGE + "encoder.", FIRST_STAGE + "decoder.")) or (
            key.startswith(FIRST_STAGE) and key.removeprefix(FIRST_STAGE) in first_names
        ):
            of_first_stage[key.removeprefix(FIRST_STAGE)] = tensor
        elif key == EMBEDDING and networks.embedding is not None:
            load_strict(networks.embedding, {"embedding.weight": tensor}, f"{path} ({EMBEDDING})")
        else:
            networks.rest[key] = tensor
    if networks.embedding is not None and EMBEDDING not in state:
        raise UserError(f"{path} lacks the class embedding {EMBEDDING}")
    load_official(networks.unet, of_unet, names, f"{path} ({'model_ema' if ema else UNET[:-1]})")
    load_official(networks.first_stage, of_first_stage, first_names, f"{path} ({FIRST_STAGE[:-1]})")
    return networks, model


def official_state(networks: Networks) -> dict[str, Tensor]:
    """The `state_dict` that `read_compvis` read, tensor for tensor."""
    names = unet_names(networks.unet)
    keys = _unet_keys(names, networks.ema)
    state = {keys[official]: tensor for official, tensor in to_official(networks.unet, names).items()}
    first = to_official(networks.first_stage, first_stage_names(networks.first_stage))
    state |= {FIRST_STAGE + key: tensor for key, tensor in first.items()}
    if networks.embedding is not None:
        state[EMBEDDING] = networks.embedding.embedding.weight.detach()
    return state | networks.rest


def _unet_keys(names: Iterable[str], ema: bool) -> dict[str, str]:
    """Official U-Net key -> key in the file. The average's keys have no dots, and no leading `model.`."""
    if not ema:
        return {name: UNET + name for name in names}
    return {name: EMA_UNET + name.replace(".", "") for name in names}


def recognised(state: Mapping[str, Tensor], source: str) -> LatentDiffusion:
    """Which of the paper's models a state dict is, by its first and last shapes.

    Raises:
        UserError: none of them.
    """
    first = state.get(f"{UNET}input_blocks.0.0.weight", state.get(f"{EMA_UNET}input_blocks00weight"))
    for model in MODELS.values():
        shape = (model.unet.model_channels, model.unet.in_channels, 3, 3)
        conditional = any("transformer_blocks" in key for key in state)
        if first is not None and first.shape == shape and conditional == model.unet.use_spatial_transformer:
            return model
    raise UserError(f"{source} is none of {', '.join(MODELS)}: give its official configuration (.yaml)")


def read_configuration(path: str | Path) -> LatentDiffusion:
    """A model by its official configuration file (`config.yaml` beside `model.ckpt`).

    Raises:
        UserError: unreadable, or a model that is not built here, with the option.
    """
    try:
        options = read_settings(path)["model"]["params"]
        first, cond = options["first_stage_config"], options.get("cond_stage_config")
        about, inner = first["params"], first["params"]["ddconfig"]
        kind: Literal["vq", "kl"] = "vq" if "VQ" in first["target"] else "kl"
        if inner.get("attn_resolutions") or about["embed_dim"] != inner["z_channels"]:
            raise UserError(f"{path}: a first stage with attn_resolutions, or embed_dim other than z_channels")
        classes = cond["params"].get("n_classes", 1000) if isinstance(cond, dict) and "params" in cond else None
        return LatentDiffusion(
            UNetOptions.of_official(options["unet_config"]["params"]),
            FirstStageOptions(
                kind,
                tuple(inner["ch_mult"]),
                inner["z_channels"],
                about.get("n_embed", 0),
                inner["ch"],
                inner["num_res_blocks"],
                inner["resolution"],
            ),
            options.get("linear_start", 1e-4),
            options.get("linear_end", 2e-2),
            classes,
            options.get("use_ema", True),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no configuration of a latent diffusion model: {error!r}") from error
