"""Weights by timm's names: files of timm, DeiT and Microsoft's Swin in both directions, and what binary layers add.

Full-precision weights carry over whole; a binary layer adds a scale per output channel (`scaling_factor` [out, 1]),
which starts from the weights. DeiT's files have timm's keys. Microsoft's Swin puts `downsample` at the end of a layer,
where timm has it at the beginning of the next, calls the head `head.*`, not `head.fc.*`, and stores buffers that are a
function of the sizes.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models.swin_transformer import SwinTransformer, get_relative_position_index
from torch import Tensor, nn

from bivit.models.architectures import check_architecture, is_binary, is_head
from bivit.models.binarize import BinaryConfig, binarize, binary_layers
from paperkit.errors import UserError, one_line
from paperkit.files.hub import WEIGHTS
from paperkit.files.keys import first_few
from paperkit.files.weights import load_report, load_strict, read_weights

Form = Literal["timm", "microsoft"]
SCALE = "scaling_factor"
BUFFERS = ("relative_position_index", "attn_mask")
"""Of Microsoft's Swin; they depend on the sizes alone."""


def to_timm(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Form]:
    """Weights of any of the three by timm's names, and whose names they had."""
    swin = any(key.startswith("layers.0.blocks.") for key in state)
    if not swin or "head.fc.weight" in state or not {"head.weight", "layers.0.downsample.norm.weight"} & state.keys():
        return dict(state), "timm"
    kept = {key: value for key, value in state.items() if key.rpartition(".")[2] not in BUFFERS}
    return {_moved(key, 1).replace("head.", "head.fc.", 1): value for key, value in kept.items()}, "microsoft"


def to_form(model: nn.Module, form: Form) -> dict[str, Tensor]:
    """The state dict of a network by the names of `form`, the buffers of Microsoft's Swin made again.

    Raises:
        UserError: Microsoft's names for a network that is no Swin.
    """
    state = {key: value.detach() for key, value in model.state_dict().items()}
    if form == "timm":
        return state
    if not isinstance(model, SwinTransformer):
        raise UserError(f"Microsoft's names are Swin's; a {type(model).__name__} has timm's")
    named = {_moved(key, -1).replace("head.fc.", "head.", 1): value for key, value in state.items()}
    layers: Any = model.layers
    for s, layer in enumerate(layers):
        for b, block in enumerate(layer.blocks):
            place = f"layers.{s}.blocks.{b}"
            named[f"{place}.attn.relative_position_index"] = get_relative_position_index(*block.window_size)
            mask = block.get_attn_mask(device=torch.device("cpu"), dtype=torch.float32)
            if mask is not None:
                named[f"{place}.attn_mask"] = mask
    return named


def _moved(key: str, by: int) -> str:
    return re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + by}.downsample", key)


def weight_file(source: str | Path) -> Path:
    """The file of a run, of a folder of `save_pretrained`, or itself.

    Raises:
        UserError: it is not there.
    """
    place = Path(source).expanduser()
    if place.is_dir():
        place = place / "model" / WEIGHTS if (place / "started").is_file() else place / WEIGHTS
    if not place.is_file():
        raise UserError(f"no weights at {place}: name a run, a folder of save_pretrained, or a file of timm's names")
    return place


def read_state(source: str | Path, trust_pickle: bool = False, part: str | None = None) -> dict[str, Tensor]:
    """Weights by timm's names from a file, a folder or a run.

    Raises:
        UserError: what cannot be read.
    """
    return to_timm(read_weights(weight_file(source), trust_pickle, part=part, part_advice="--part"))[0]


def read_start(name: str, source: str, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Weights to begin training with, by timm's names.

    Args:
        name: timm's, of the network; it stands for `{name}` in the source.
        source: as in `read_state`; or `timm` for the weights that timm downloads.

    Raises:
        UserError: none where they should be.
    """
    if source != "timm":
        return read_state(source.replace("{name}", name), trust_pickle)
    check_architecture(name)
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # whatever the hub's client raises without a network
        reason = one_line(str(error))[:200]
        raise UserError(f"timm gave no weights of {name}: {reason}; name a file instead") from error


def load_pretrained(model: nn.Module, source: str | Path, trust_pickle: bool = False) -> nn.Module:
    """Loads weights into a network, float or binary, strictly; only scales may be missing, and start from the weights.

    Args:
        source: file of timm, DeiT or Microsoft's Swin, folder of `save_pretrained`, or run.

    Raises:
        UserError: any other missing, unexpected or misshapen key; nothing is changed then.
    """
    load_state(model, read_state(source, trust_pickle), str(source))
    return model


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """`load_pretrained` of weights that are read already."""
    started = {key: value for key, value in model.state_dict().items() if key.endswith(f".{SCALE}")}
    missing = started.keys() - state.keys()
    load_strict(model, {**state, **{key: started[key] for key in missing}}, source)
    for name, layer in binary_layers(model).items():
        if f"{name}.{SCALE}" in missing:
            layer.start_scale()


def begin(model: nn.Module, config: BinaryConfig, state: Mapping[str, Tensor], source: str) -> list[str]:
    """Binarizes a float network, starting from weights: of the float one, or of an earlier stage of training.

    What the stage before had beside the float weights (scales, thresholds) is kept; what is new starts from the
    weights. A classifier of another number of classes begins anew.

    Returns:
        Keys of a classifier that begins anew.

    Raises:
        UserError: weights that do not fit.
    """
    wanted = model.state_dict()
    fresh = [key for key in wanted if is_head(key) and key in state and state[key].shape != wanted[key].shape]
    own = {key: value for key, value in state.items() if key in wanted and key not in fresh}
    more = {key: value for key, value in state.items() if key not in wanted}
    load_strict(model, {**own, **{key: wanted[key] for key in fresh}}, source)
    if is_binary(config):
        binarize(model, config)
    report = load_report(model, more)
    if report.unexpected or report.misshapen:
        kinds = first_few(report.unexpected + report.misshapen)
        raise UserError(f"{source} holds what this network has no place for: {kinds}")
    return fresh
