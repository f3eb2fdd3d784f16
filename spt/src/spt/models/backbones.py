"""Pre-trained backbones in the formats that their authors released, loaded strictly into plain timm models.

Google's `.npz` (supervised ViT), MAE's and MoCo v3's `.pth`, Microsoft's Swin `.pth`, and our own safetensors.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.errors import UserError, one_line
from paperkit.files.arrays import read_npz
from paperkit.files.parts import find_state, without_prefixes
from paperkit.files.weights import check_finite, load_strict, read_checkpoint
from spt.method.candidates import find_candidates
from spt.method.sensitivity import reset_head
from spt.method.split_qkv import fuse_state, split_state

Format = Literal["npz", "mae", "moco", "swin", "convnext", "timm"]
ADVICE = {"part": "--part", "trust-pickle": "--trust-pickle"}
PREFIX = "opt/target/"  # of the names in some of Google's files


@dataclass(frozen=True)
class Backbone:
    """A row of the table of backbones.

    Attributes:
        arch: timm architecture.
        format: layout of the released file.
        file: name of the released file.
        timm_tag: timm's own pretrained tag for the same weights.
        params: parameters without the head.
    """

    arch: str
    format: Format
    file: str
    timm_tag: str
    params: int


BACKBONES = {
    "vit_b16_supervised": Backbone("vit_base_patch16_224", "npz", "ViT-B_16.npz", "orig_in21k", 85_798_656),
    "vit_b16_mae": Backbone("vit_base_patch16_224", "mae", "mae_pretrain_vit_base.pth", "mae", 85_798_656),
    "vit_b16_moco": Backbone("vit_base_patch16_224", "moco", "linear-vit-b-300ep.pth.tar", "", 85_798_656),
    "swin_b_supervised": Backbone(
        "swin_base_patch4_window7_224", "swin", "swin_base_patch4_window7_224_22k.pth", "ms_in22k", 86_743_224
    ),
    "convnext_b_supervised": Backbone("convnext_base", "convnext", "convnext_base_22k_224.pth", "fb_in22k", 87_564_416),
    "vit_l16_supervised": Backbone("vit_large_patch16_224", "npz", "ViT-L_16.npz", "", 303_301_632),
}


def create_backbone(arch: str, num_classes: int, drop_path: float = 0.1, **sizes: Any) -> nn.Module:
    """A timm model with a fresh random head (truncated normal of std 0.02), never downloaded.

    Raises:
        UserError: for an architecture that timm does not know, sizes that it does not take, images that are not RGB.
    """
    if arch not in timm.list_models(arch):
        raise UserError(f"timm has no architecture {arch!r}; see timm.list_models()")
    if sizes.get("in_chans", 3) != 3:
        raise UserError(f"in_chans {sizes['in_chans']} does not fit: pictures are read as RGB, with 3 channels")
    try:
        model = timm.create_model(arch, pretrained=False, num_classes=num_classes, drop_path_rate=drop_path, **sizes)
    except UserError:  # of a reader that bounds what a file may ask for
        raise
    except Exception as error:  # whatever a constructor makes of strange sizes
        raise UserError(f"timm cannot build {arch} with {sizes}: {one_line(str(error))[:200]}") from error
    reset_head(model)
    return model


def vit_shapes(arch: str = "vit_base_patch16_224") -> dict[str, torch.Size]:
    """Candidates' shapes of a ViT, on the meta device."""
    with torch.device("meta"):
        return find_candidates(timm.create_model(arch, num_classes=1)).shapes()


def load_backbone(
    model: nn.Module,
    path: str | Path,
    format: Format | None = None,
    trust_pickle: bool = False,
    *,
    part: str | None = None,
    advice: Mapping[str, str] = ADVICE,
) -> list[str]:
    """Loads a released or own file strictly into a plain timm model; a head of another class count is left random.

    Args:
        format: layout; by default npz by suffix, otherwise told from the keys.
        part, advice: as in `read_backbone`.

    Returns:
        Names of the parameters of `model` that the file does not hold (the head's, or none).

    Raises:
        UserError: for a file that is missing, unreadable or does not fit, naming the keys.
    """
    state, _ = read_backbone(path, model, format, trust_pickle, part=part, advice=advice)
    own = model.state_dict()
    head = [name for name in own if "head" in name]
    usable = {name: value for name, value in state.items() if "head" not in name}
    if all(name in state and state[name].shape == own[name].shape for name in head):
        usable.update({name: state[name] for name in head})
        left: list[str] = []
    else:
        usable.update({name: own[name] for name in head})
        left = head
    load_strict(model, usable, str(path))
    return left


def read_backbone(
    path: str | Path,
    model: nn.Module,
    format: Format | None = None,
    trust_pickle: bool = False,
    *,
    part: str | None = None,
    advice: Mapping[str, str] = ADVICE,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State in timm's (fused) keys, and what else the file holds (MoCo's linear-probe head, Swin's regenerated buffers,
    MAE's decoder, Google's pre-logits) under its own keys.

    A position table of another grid than the model's is resized, whatever the format.

    Args:
        part: which of several state dicts in the file (`teacher`), see `paperkit.files.weights.read_weights`.
        advice: how the caller's user writes the options `part` and `trust-pickle`, for messages.

    Raises:
        UserError: missing or unreadable file, no or several state dicts, weights that are no numbers.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no pretrained file at {path}; put {known_file(path.name)} there")
    if format == "npz" or (format is None and path.suffix == ".npz"):
        arrays, _ = read_google(path)
        state = npz_to_state(arrays, getattr(getattr(model, "patch_embed", None), "grid_size", None))
        left = {name: torch.from_numpy(arrays[name]) for name in arrays if name not in npz_names(state)}
        return fuse_state(state), left
    content = read_checkpoint(path, trust_pickle, advice=advice["trust-pickle"])
    state = without_prefixes(find_state(content, path, part, advice["part"]), path)
    check_finite(state, path)
    state = with_positions_for(model, state)
    if path.suffix == ".safetensors":
        return state, {}
    if format == "moco" or (format is None and "state_dict" in content):
        return _apart(state, ("head.",))
    if any(name.startswith("layers.") for name in state):
        buffers = {name: v for name, v in state.items() if name.endswith(("relative_position_index", "attn_mask"))}
        from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter

        return _filtered(swin_filter, state, model, path), buffers
    if any(name.startswith("downsample_layers.") for name in state):
        from timm.models.convnext import checkpoint_filter_fn as convnext_filter

        return _filtered(convnext_filter, state, model, path), {}
    backbone, left = _apart(state, ("decoder", "mask_token"))
    return fuse_state(backbone), left


def with_positions_for(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with its position table `pos_embed` resized to the model's grid, where that is another one."""
    table, own = state.get("pos_embed"), getattr(model, "pos_embed", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if table is None or not isinstance(own, Tensor) or grid is None or table.ndim != 3 or table.shape == own.shape:
        return state
    prefix = own.shape[1] - grid[0] * grid[1]  # the class token's places, where they have some
    return {**state, "pos_embed": resize_positions(table, grid, prefix)} if prefix >= 0 else state


def _filtered(
    rename: Callable[..., dict[str, Tensor]], state: dict[str, Tensor], model: nn.Module, path: Path
) -> dict[str, Tensor]:
    """timm's own filter of released keys; it raises whatever comes to it on strange ones."""
    try:
        return rename({"model": dict(state)}, model)
    except Exception as error:
        raise UserError(f"{path} does not fit {type(model).__name__}: {error}") from error


def known_file(name: str) -> str:
    """The released file that is meant, for messages."""
    names = {backbone.file for backbone in BACKBONES.values()}
    return name if name in names else f"one of {', '.join(sorted(names))} (or a safetensors file of `spt convert`)"


def _apart(state: dict[str, Tensor], starts: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state without, and the state with, the keys that begin so."""
    inside = {name: value for name, value in state.items() if not name.startswith(starts)}
    return inside, {name: value for name, value in state.items() if name.startswith(starts)}


def timm_to_swin(state: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's keys -> Microsoft's: a downsampling belongs to the stage before, the head is `head`.

    Args:
        buffers: position indices and masks that the released file holds beside the weights.
    """
    out = dict(buffers)
    for name, value in state.items():
        if found := re.match(r"layers\.(\d+)\.downsample\.(.*)", name):
            name = f"layers.{int(found[1]) - 1}.downsample.{found[2]}"
        out[name.replace("head.fc.", "head.")] = value
    return out


# --- Google's npz ------------------------------------------------------------------------------------------------


def read_google(path: str | Path) -> tuple[dict[str, numpy.ndarray], str]:
    """Arrays of a file of Google's without the prefix of their names, and that prefix (`opt/target/`, or nothing).

    Raises:
        UserError: see `paperkit.files.arrays.read_npz`.
    """
    arrays = read_npz(path)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in arrays) else ""
    return {name.removeprefix(prefix): value for name, value in arrays.items()}, prefix


def resize_positions(table: Tensor, grid: tuple[int, int], prefix: int = 1) -> Tensor:
    """Position table [1, prefix + g*g, D] for another grid: bicubic, not antialiased, corners not aligned (as
    released)."""
    first, rest = table[:, :prefix], table[:, prefix:]
    side = math.isqrt(rest.shape[1])
    if side * side != rest.shape[1]:
        raise UserError(f"a position table of {rest.shape[1]} places is not a square grid")
    if (side, side) == tuple(grid):
        return table
    square = rest.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([first, square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def npz_to_state(arrays: Mapping[str, numpy.ndarray], grid: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Google's arrays -> keys of the separate model. `pre_logits` is ignored, the position table resized to `grid`.

    Raises:
        UserError: naming an array that is not there.
    """

    def take(name: str) -> Tensor:
        if name not in arrays:
            raise UserError(f"the npz file lacks {name}")
        return torch.from_numpy(numpy.ascontiguousarray(arrays[name]))

    state = {
        "cls_token": take("cls"),
        "pos_embed": take("Transformer/posembed_input/pos_embedding"),
        "patch_embed.proj.weight": take("embedding/kernel").permute(3, 2, 0, 1).contiguous(),
        "patch_embed.proj.bias": take("embedding/bias"),
        "norm.weight": take("Transformer/encoder_norm/scale"),
        "norm.bias": take("Transformer/encoder_norm/bias"),
    }
    if grid is not None:
        state["pos_embed"] = resize_positions(state["pos_embed"], grid)
    blocks = {int(found[1]) for name in arrays if (found := re.search(r"encoderblock_(\d+)/", name))}
    for index in sorted(blocks):
        source, target = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            state[f"{target}.{ours}.weight"] = take(f"{source}/{theirs}/scale")
            state[f"{target}.{ours}.bias"] = take(f"{source}/{theirs}/bias")
        attention = f"{source}/MultiHeadDotProductAttention_1"
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
            state[f"{target}.attn.{ours}.weight"] = take(f"{attention}/{theirs}/kernel").flatten(1).t().contiguous()
            state[f"{target}.attn.{ours}.bias"] = take(f"{attention}/{theirs}/bias").flatten()
        state[f"{target}.attn.proj.weight"] = take(f"{attention}/out/kernel").flatten(0, 1).t().contiguous()
        state[f"{target}.attn.proj.bias"] = take(f"{attention}/out/bias")
        for layer in (0, 1):
            dense = f"{source}/MlpBlock_3/Dense_{layer}"
            state[f"{target}.mlp.fc{layer + 1}.weight"] = take(f"{dense}/kernel").t().contiguous()
            state[f"{target}.mlp.fc{layer + 1}.bias"] = take(f"{dense}/bias")
    if "head/kernel" in arrays:
        state["head.weight"], state["head.bias"] = take("head/kernel").t().contiguous(), take("head/bias")
    return state


def npz_names(state: Mapping[str, Tensor]) -> set[str]:
    """Names of the arrays that a separate state comes from."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    block = [f"{part}/{leaf}" for part in ("LayerNorm_0", "LayerNorm_2") for leaf in ("scale", "bias")]
    places = ("query", "key", "value", "out")
    block += [f"MultiHeadDotProductAttention_1/{place}/{leaf}" for place in places for leaf in ("kernel", "bias")]
    block += [f"MlpBlock_3/Dense_{layer}/{leaf}" for layer in (0, 1) for leaf in ("kernel", "bias")]
    single = ["cls", "Transformer/posembed_input/pos_embedding", "embedding/kernel", "embedding/bias"]
    single += ["Transformer/encoder_norm/scale", "Transformer/encoder_norm/bias", "head/kernel", "head/bias"]
    return {*single, *(f"Transformer/encoderblock_{index}/{name}" for index in range(depth) for name in block)}


def state_to_npz(state: Mapping[str, Tensor], heads: int) -> dict[str, numpy.ndarray]:
    """The inverse of `npz_to_state` for a ViT of `heads` heads (fused or separate keys)."""
    state = {name: value.detach().cpu() for name, value in split_state(dict(state)).items()}
    out = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for index in range(depth):
        target, source = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{target}/{theirs}/scale"] = state[f"{source}.{ours}.weight"]
            out[f"{target}/{theirs}/bias"] = state[f"{source}.{ours}.bias"]
        attention = f"{target}/MultiHeadDotProductAttention_1"
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
            weight, bias = state[f"{source}.attn.{ours}.weight"], state[f"{source}.attn.{ours}.bias"]
            out[f"{attention}/{theirs}/kernel"] = weight.t().unflatten(1, (heads, -1))
            out[f"{attention}/{theirs}/bias"] = bias.unflatten(0, (heads, -1))
        out[f"{attention}/out/kernel"] = state[f"{source}.attn.proj.weight"].t().unflatten(0, (heads, -1))
        out[f"{attention}/out/bias"] = state[f"{source}.attn.proj.bias"]
        for layer in (0, 1):
            dense = f"{target}/MlpBlock_3/Dense_{layer}"
            out[f"{dense}/kernel"] = state[f"{source}.mlp.fc{layer + 1}.weight"].t()
            out[f"{dense}/bias"] = state[f"{source}.mlp.fc{layer + 1}.bias"]
    if "head.weight" in state:
        out["head/kernel"], out["head/bias"] = state["head.weight"].t(), state["head.bias"]
    return {name: numpy.ascontiguousarray(value.numpy()) for name, value in out.items()}
