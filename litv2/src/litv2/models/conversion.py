"""Released checkpoint file to a folder of `save_pretrained` and back, strictly: nothing is dropped without a word."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litv2.models.backbone import LITv2Backbone
from litv2.models.classifier import LITv2
from litv2.models.pyramid import Pyramid
from litv2.models.released import backbone_part, check_heads, describe_released, fit_released, read_released, size_name
from paperkit.errors import UserError
from paperkit.files.hub import CONFIG, WEIGHTS, read_config, replaced_folder
from paperkit.files.weights import load_strict, read_metadata, read_weights, save_checkpoint, save_weights

REST = "rest.safetensors"


def build_for(
    state: dict[str, Tensor], window: int | None = None, source: str = "the file"
) -> tuple[Pyramid, dict[str, Any]]:
    """The network on the meta device that a state dict fits, and its constructor arguments.

    Raises:
        UserError: no LITv2 weights, or a window that cannot be.
    """
    own, rest = backbone_part(state)
    options = describe_released(state, source)
    if window is not None and "local_ws" in options:
        if window < 2:
            raise UserError(f"window {window}: 1 is plain attention, whose weights have other shapes; take 2 or more")
        options["local_ws"] = (*options["local_ws"][:2], window, *options["local_ws"][3:])
    norms = tuple(i for i in range(4) if f"norm{i}.weight" in own)
    with torch.device("meta"):
        if norms or rest:
            options["out_norms"] = norms
            return LITv2Backbone(**options), options
        return LITv2(**options), options


def to_folder(source: Path, target: Path, window: int | None, alpha: float | None, trust_pickle: bool) -> str:
    """Write the folder; returns a line that says what is in it.

    Raises:
        UserError: a damaged file, no LITv2 weights, another alpha than asked for, keys that do not fit.
    """
    state = read_released(source, trust_pickle)
    own, rest = backbone_part(state)
    model, options = build_for(state, window, str(source))
    if alpha is not None and alpha != options.get("alpha"):
        with torch.device("meta"):
            wanted = type(model)(**{**options, "alpha": alpha})
        for name, module in wanted.named_modules():
            if hasattr(module, "l_heads"):
                check_heads(own, name, module)
        options["alpha"] = alpha
    model = type(model)(**options)
    load_strict(model, own, str(source))
    with replaced_folder(target) as folder:
        save_weights(folder / WEIGHTS, own, {"format": "pt", "form": "state_dict" if rest else "model"})
        if rest:
            save_weights(folder / REST, rest, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(options, indent=2) + "\n")
    name = size_name(options) or "no published size"
    beside = f", {len(rest)} tensors of neck and heads in {REST}" if rest else ""
    return f"{target}: {type(model).__name__} ({name}), {len(own)} tensors{beside}"


def to_released(source: Path, target: Path) -> str:
    """Write a .pth file of the authors' form; returns a line that says what is in it.

    Raises:
        UserError: a folder that lacks its files, or another suffix.
    """
    if target.suffix not in (".pth", ".pt"):
        raise UserError(f"{target} must end in .pth")
    if not (source / WEIGHTS).is_file():
        raise UserError(f"{source} has no {WEIGHTS}; `litv2 convert FILE FOLDER` makes such a folder")
    own = read_weights(source / WEIGHTS)
    form = read_metadata(source / WEIGHTS).get("form", "model")
    if form == "state_dict":
        rest = read_weights(source / REST) if (source / REST).is_file() else {}
        save_checkpoint(target, {"state_dict": {**{f"backbone.{k}": t for k, t in own.items()}, **rest}})
        return f"{target}: state_dict with {len(own)} backbone tensors and {len(rest)} others"
    save_checkpoint(target, {"model": own})
    return f"{target}: model with {len(own)} tensors"


def load_classifier(path: str | Path, trust_pickle: bool = False, **changes: Any) -> LITv2:
    """A classifier from a run folder, a `save_pretrained` folder or a released file, its options changed as asked.

    Args:
        changes: constructor arguments in place of those found (`local_ws`, `alpha`); None leaves one alone.

    Raises:
        UserError: weights of a detector or segmenter, another alpha, keys that do not fit.
    """
    path = Path(path)
    if (path / "model" / WEIGHTS).is_file():
        path = path / "model"
    if path.is_dir():
        state = read_weights(path / WEIGHTS)
        options = read_config(path) if (path / CONFIG).is_file() else describe_released(state, str(path))
    else:
        state = read_released(path, trust_pickle)
        options = describe_released(state, str(path))
    if "head.weight" not in state:
        raise UserError(f"{path} holds no classifier: no head.weight among {len(state)} keys")
    model = LITv2(**{**options, **{key: value for key, value in changes.items() if value is not None}})
    load_strict(model, fit_released(state, model), str(path))
    return model.eval()
