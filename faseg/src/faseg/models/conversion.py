"""Checkpoint files to folders of `save_pretrained` and back, strictly, and any of the forms to a network."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from faseg.models.faseg import FASeg
from faseg.models.released import describe_released, read_released, release_name
from faseg.models.resnet import ResNet, to_torchvision
from faseg.models.swin import to_mmseg, to_timm
from faseg.models.trained import from_run, is_run
from paperkit.errors import UserError
from paperkit.files.hub import CONFIG, WEIGHTS, replaced_folder
from paperkit.files.weights import load_strict, save_checkpoint, save_weights
from paperkit.verification.bounds import at_most

NAMES = ("torchvision", "timm", "mmseg")


def load_network(path: str | Path, trust_pickle: bool | None = None, omega: int | None = None) -> FASeg:
    """A network in eval mode from a run folder, a folder of `save_pretrained`, or a released or Mask2Former file.

    Args:
        path: folder or file. trust_pickle: as in `faseg.models.released.read_released`.
        omega: windows for one that the decoder keeps, in place of what was found.

    Raises:
        UserError: what is none of these, or keys that do not fit.
    """
    path = Path(path)
    if is_run(path):
        model = from_run(path)
    elif path.is_dir():
        model = FASeg.from_pretrained(path)
    else:
        model = _from_file(path, trust_pickle)[0]
    if omega is not None:
        model.sem_seg_head.predictor.omega = omega
    return model


def _from_file(path: Path, trust_pickle: bool | None = None, omega: int | None = None) -> tuple[FASeg, dict[str, Any]]:
    """The network of a file and the arguments that build it."""
    state = read_released(path, trust_pickle)
    options = describe_released(state, str(path))
    if omega is not None:
        options["decoder"] = {**options.get("decoder", {}), "omega": omega}
    with at_most(state.values()):
        model = FASeg(**options)
    load_strict(model, state, str(path))
    return model.eval(), options


def to_folder(source: Path, target: Path, trust_pickle: bool | None = None, omega: int | None = None) -> str:
    """Writes a folder of `save_pretrained` from a file; returns a line that says what is in it.

    Args and Raises as in `load_network`.
    """
    model, options = _from_file(source, trust_pickle, omega)
    state = model.state_dict()
    with replaced_folder(target) as folder:
        save_weights(folder / WEIGHTS, state, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(options, indent=2) + "\n")
    return f"{target}: FASeg ({release_name(options) or 'no published size'}), {len(state)} tensors"


def to_file(source: Path, target: Path, names: str | None = None) -> str:
    """Writes a .pth file of the authors' form from a folder or run; returns a line that says what is in it.

    Args:
        names: write the backbone alone, under the names of one of `NAMES`.

    Raises:
        UserError: another suffix, a folder that lacks its files, names that the backbone has not.
    """
    if target.suffix not in (".pth", ".pt"):
        raise UserError(f"{target} must end in .pth")
    model = load_network(source)
    if names is None:
        state = model.state_dict()
        save_checkpoint(target, {"model": state})  # with torch's version numbers, which the authors' loader asks for
        return f"{target}: model with {len(state)} tensors{_unsaid(model)}"
    renamed = backbone_state(model, names)
    save_checkpoint(target, {"state_dict": renamed})
    return f"{target}: backbone under {names}'s names with {len(renamed)} tensors"


def _unsaid(model: FASeg) -> str:
    """Options of a network that leave no trace in its weights and are not those that a reader of these takes."""
    found = describe_released(model.state_dict()).get("decoder", {})
    usual = dict(omega=32, min_windows=0, hrca_query_pos="learned", init_pool="background",
                 attn_threshold=found.get("attn_threshold", 0.15))  # fmt: skip
    own = {name: getattr(model.sem_seg_head.predictor, name) for name in usual}
    differ = [f"{name} {value}" for name, value in own.items() if value != usual[name]]
    return f"; weights alone do not say {', '.join(differ)}" if differ else ""


def backbone_state(model: FASeg, names: str) -> dict[str, Tensor]:
    """The backbone's weights under the names of one of `NAMES`.

    Raises:
        UserError: names that the backbone has not.
    """
    resnet = isinstance(model.backbone, ResNet)
    if names not in NAMES or (names == "torchvision" and not resnet):
        known = ", ".join(NAMES if resnet else NAMES[1:])
        raise UserError(f"names '{names}' for a {type(model.backbone).__name__}; it has those of {known}")
    rename = to_torchvision if resnet else to_timm if names == "timm" else to_mmseg
    return rename(model.backbone.state_dict())
