"""Files and folders to networks, and networks to files: runs, converted weights, AFSD's checkpoints, backbones' files.

A converted file is safetensors whose metadata holds the network's settings, so that it needs nothing beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.bounded import parse_json
from paperkit.files.runs import process_rank
from paperkit.files.weights import (
    check_finite,
    load_strict,
    read_checkpoint,
    read_metadata,
    read_weights,
    save_checkpoint,
    save_weights,
)
from paperkit.training.openmmlab import newest_whole, read_data
from paperkit.verification.bounds import at_most
from stpt.method.backbone import Backbone
from stpt.models.i3d import I3D, from_imagenet_file
from stpt.models.inflation import inflated, is_mvit, load_mvit
from stpt.models.released import HEAD, describe_released
from stpt.models.stpt import SETTINGS, STPT

KEPT = "detection.json"
"""File of a run folder that holds its config."""
CARD = "settings"
"""Key of a converted file's metadata."""
BODY = "backbone."


def is_run(path: Path) -> bool:
    """Whether a path is a run folder of the detection engine, or a checkpoint inside of one."""
    return (path if path.is_dir() else path.parent).joinpath(KEPT).is_file()


def load_network(source: str | Path, device: str | torch.device = "cpu", trust_pickle: bool = False) -> STPT:
    """A network in eval mode; its `settings` say what it is.

    Args:
        source: run folder of `stpt train` (its newest whole checkpoint), a checkpoint inside of one, a folder of
            `save_pretrained`, a converted .safetensors file, or a .ckpt file of AFSD.
        device: where to put it. trust_pickle: read a file that can run code.

    Raises:
        UserError: none of these, or weights that do not fit.
    """
    path = Path(source)
    if is_run(path):
        network = _from_run(path)
    elif path.is_dir():
        network = STPT.from_pretrained(path)
    else:
        network = _from_file(path, trust_pickle)
    return network.to(device).eval()


def _from_file(path: Path, trust_pickle: bool) -> STPT:
    state = read_weights(path, trust_pickle)
    settings = _card(path) if path.suffix == ".safetensors" else None
    if settings is None:
        settings = describe_released(state, str(path))
    with at_most(state.values()):
        network = STPT.from_settings(settings)
    load_strict(network, state, str(path))
    return network


def _card(path: Path) -> dict[str, Any] | None:
    """The settings in a file's metadata, if it has any."""
    text = read_metadata(path).get(CARD)
    if text is None:
        return None
    try:
        settings = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} has settings that are no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} has settings that are a {type(settings).__name__}, not values by name")
    return settings


def _from_run(path: Path) -> STPT:
    folder = path if path.is_dir() else path.parent
    checkpoint = newest_whole(folder) if path.is_dir() else path
    if checkpoint is None:
        raise UserError(f"{folder} has no whole checkpoint")
    config = read_data(folder / KEPT)
    model = config.get("model")
    if not (
        isinstance(model, Mapping) and all(isinstance(model.get(name), Mapping) for name in ("backbone", "detector"))
    ):
        kind = model.get("type", "missing") if isinstance(model, Mapping) else model
        raise UserError(f"{folder / KEPT} describes no detector: its model is {str(kind)[:60]!r}")
    content = read_checkpoint(checkpoint, allow=get_torch_safe_globals(), advice=None)
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise UserError(f"{checkpoint} is no checkpoint of mmengine: it has no state_dict")
    meta: Any = content
    for key in ("meta", "dataset_meta"):
        meta = meta.get(key) or {}
        if not isinstance(meta, Mapping):
            raise UserError(f"{checkpoint} is no checkpoint of mmengine: its {key} is a {type(meta).__name__}")
    settings = {name: config.get(name) for name in SETTINGS if config.get(name) is not None}
    settings.update({name: _plain(model[name]) for name in ("backbone", "detector")})
    for name in ("classes", "fps"):
        settings.setdefault(name, meta.get(name))
    state = {key: value for key, value in content["state_dict"].items() if key.startswith((BODY, HEAD))}
    check_finite(state, checkpoint)
    with at_most(state.values()):
        network = STPT.from_settings(settings)
    load_strict(network, state, str(checkpoint))
    return network


def _plain(value: Any) -> dict[str, Any]:
    """mmengine's mapping as a dict, without the type that its registry looks for."""
    found = value.to_dict() if hasattr(value, "to_dict") else dict(value)
    return {key: entry for key, entry in found.items() if key != "type"}


def save_network(network: STPT, target: Path) -> str:
    """Writes a network as a converted .safetensors file, a .ckpt of AFSD's form, or a folder of `save_pretrained`.

    Returns:
        A line that says what was written.

    Raises:
        UserError: a target that is none of these, or that cannot be written.
    """
    state, name = network.state_dict(), network.settings["backbone"]["name"]
    if target.suffix == ".safetensors":
        save_weights(target, state, {"format": "pt", CARD: json.dumps(network.settings)})
        return f"{target}: {name} with its settings, {len(state)} tensors"
    if target.suffix in (".ckpt", ".pth", ".pt"):
        save_checkpoint(target, dict(state))
        return f"{target}: {name} as a bare state dict, {len(state)} tensors"
    if target.suffix:
        raise UserError(f"{target} must be a folder, or end in .safetensors or .ckpt")
    network.save_pretrained(target, config=network.settings)
    return f"{target}: folder of {name}, {len(state)} tensors"


def load_backbone(
    backbone: Backbone | I3D, source: str | Path, inflation: str = "mean", trust_pickle: bool = False
) -> None:
    """Fills a backbone with pre-trained weights, and prints what was loaded.

    Args:
        backbone: changed in place.
        source: a run of ours (of detection or of Kinetics), a file or folder that holds such a backbone, a 2D network
            of the same names (its convolutions are inflated, its classifier `head` is left out), torchvision's
            `mvit_v1_b`, or for I3D rgb_imagenet.pt, flow_imagenet.pt or a checkpoint of AFSD.
        inflation: `mean` or `center`, see `stpt.models.inflation.inflate`. trust_pickle: as in `load_network`.

    Raises:
        UserError: a file that cannot be read, or weights that do not fit. MViT's alone may fit in part.
    """
    path = Path(source)
    file = (newest_whole(path) or path / "model.safetensors") if path.is_dir() else path
    state = read_weights(file, trust_pickle, allow=get_torch_safe_globals())
    if any(key.startswith(BODY) for key in state):
        state = {key.removeprefix(BODY): value for key, value in state.items() if key.startswith(BODY)}
    if isinstance(backbone, Backbone) and is_mvit(state):
        lines = load_mvit(backbone, state).lines()
    else:
        fitting = _fitting(backbone, state, inflation)
        load_strict(backbone, fitting, str(file))
        lines = [f"{len(fitting)} loaded"]
    if process_rank() == 0:
        print(f"backbone from {file}: " + "; ".join(lines), flush=True)


def _fitting(backbone: Backbone | I3D, state: Mapping[str, Tensor], inflation: str) -> dict[str, Tensor]:
    """Weights of a file under the backbone's names."""
    if isinstance(backbone, Backbone):
        return inflated({name: x for name, x in state.items() if not name.startswith("head.")}, backbone, inflation)
    return from_imagenet_file(state) if "Conv3d_1a_7x7.conv3d.weight" in state else dict(state)
