"""Released checkpoint file to a folder of `save_pretrained` and back, strictly: nothing is dropped without a word."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from litv2.models.backbone import LITv2Backbone
from litv2.models.classifier import LITv2
from litv2.models.pyramid import Pyramid
from litv2.models.released import backbone_part, check_heads, describe_released, fit_released, read_released, size_name
from paperkit.errors import UserError
from paperkit.files.bounded import read_json
from paperkit.files.hub import CONFIG, WEIGHTS, read_config, replaced_folder
from paperkit.files.weights import load_strict, read_metadata, read_weights, save_checkpoint, save_weights

REST = "rest.safetensors"
CLASSES = "classes.json"


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


def to_folder(
    source: Path,
    target: Path,
    window: int | None = None,
    alpha: float | None = None,
    trust_pickle: bool | None = None,
    part: str | None = None,
) -> str:
    """Write the folder; returns a line that says what is in it.

    Args:
        source, target: file and folder.
        window, alpha: of the config; weights of another alpha are refused.
        trust_pickle, part: as in `litv2.models.released.read_released`.

    Raises:
        UserError: a damaged file, no LITv2 weights, another alpha than asked for, keys that do not fit.
    """
    state = read_released(source, trust_pickle, part, None if trust_pickle is None else "--part")
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
    own = read_weights(source / WEIGHTS, advice=None)
    form = read_metadata(source / WEIGHTS).get("form", "model")
    if form == "state_dict":
        rest = read_weights(source / REST, advice=None) if (source / REST).is_file() else {}
        save_checkpoint(target, {"state_dict": {**{f"backbone.{k}": t for k, t in own.items()}, **rest}})
        return f"{target}: state_dict with {len(own)} backbone tensors and {len(rest)} others"
    save_checkpoint(target, {"model": own})
    return f"{target}: model with {len(own)} tensors"


def load_classifier(
    path: str | Path, trust_pickle: bool | None = None, part: str | None = None, **changes: Any
) -> LITv2:
    """A classifier from a run folder, a `save_pretrained` folder or a released file, its options changed as asked.

    Args:
        path: folder or file.
        trust_pickle, part: as in `litv2.models.released.read_released`.
        changes: constructor arguments in place of those found (`local_ws`, `alpha`); None leaves one alone.

    Raises:
        UserError: weights of a detector or segmenter, another alpha, keys that do not fit.
    """
    path = Path(path).expanduser()
    if (path / "model" / WEIGHTS).is_file():
        path = path / "model"
    if path.is_dir():
        state = read_weights(path / WEIGHTS, advice=None)
        options = read_config(path) if (path / CONFIG).is_file() else describe_released(state, str(path))
    else:
        state = read_released(path, trust_pickle, part, None if trust_pickle is None else "--part")
        options = describe_released(state, str(path))
    if "head.weight" not in state:
        raise UserError(f"{path} holds no classifier: no head.weight among {len(state)} keys")
    options |= {key: value for key, value in changes.items() if value is not None}
    with torch.device("meta"):  # a config cannot ask for more memory than its weights have
        try:
            sketch = build(options, str(path))
        except UserError as error:
            raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
        shapes = {key: tensor.to("meta") for key, tensor in state.items()}
        load_strict(sketch, fit_released(shapes, sketch), str(path))
    model = LITv2(**options)
    load_strict(model, fit_released(state, model), str(path))
    return model.eval()


def saved_classes(path: str | Path) -> list[str] | None:
    """The names of a classifier's classes, which a run keeps beside its folders of weights; None where there are none.

    Args:
        path: a run folder, or a folder or file of weights in it.

    Raises:
        UserError: if the file holds no list of names.
    """
    path = Path(path).expanduser().absolute()
    for place in (path, *path.parents[:2]):
        if not (place / CLASSES).is_file() or (place != path and not (place / "started").is_file()):
            continue
        names = read_json(place / CLASSES, "list of classes")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{place / CLASSES} holds no list of names")
        return names
    return None


def class_names(path: str | Path, count: int) -> list[str]:
    """What the `count` outputs of a classifier are called: by its run, by ImageNet where there are 1,000, by number."""
    names = saved_classes(path)
    if names is None and count == 1000:
        information = ImageNetInfo("imagenet-1k")
        return [information.index_to_description(i) for i in range(count)]
    names = (names or [])[:count]
    return [*names, *(f"class {i}" for i in range(len(names), count))]


def build(options: Mapping[str, Any], source: str) -> LITv2:
    """The classifier of constructor arguments that stand in a file.

    Raises:
        UserError: arguments that describe no LITv2; the source is named.
    """
    try:
        return LITv2(**options)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
        raise UserError(f"{source} does not describe a LITv2: {error}") from error
