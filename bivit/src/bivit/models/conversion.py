"""Files by the names of timm, DeiT or Microsoft's Swin to folders of `save_pretrained`, and back, tensor by tensor."""

from pathlib import Path
from typing import Any

from bivit.models.binarize import binary_layers
from bivit.models.classifier import BinaryClassifier, describe, is_packed
from bivit.models.keys import load_state, to_form, to_timm
from paperkit.errors import UserError
from paperkit.files.hub import WEIGHTS
from paperkit.files.weights import read_metadata, read_weights, save_checkpoint, save_weights


def to_folder(source: Path, target: Path, trust_pickle: bool = False, **told: Any) -> str:
    """Writes a folder from a file; returns a line that says what is in it.

    Args:
        told: arch, method and options, as in `bivit.models.classifier.describe`.

    Raises:
        UserError: a damaged file, weights of no known network, or keys that do not fit.
    """
    state, form = to_timm(read_weights(source, trust_pickle))
    described = describe(state, str(source), **told)
    made = BinaryClassifier(**described)
    load_state(made.network, state, str(source))
    made.weights_metadata = {"format": "pt", "form": form}  # type: ignore[misc]  # this object's own
    made.save_pretrained(target)
    kind = f"{len(binary_layers(made.network))} binary linears" if described["binary"] else "float"
    return f"{target}: {described['arch']}, {kind}, {len(made.state_dict())} tensors, by the names of {form}"


def to_file(source: Path, target: Path, form: str | None = None) -> str:
    """Writes a file from a folder; returns a line that says what is in it.

    Args:
        form: whose names it gets; without, those that the folder's weights came with.

    Raises:
        UserError: a folder that lacks its files or is packed, or another suffix.
    """
    if target.suffix not in (".pth", ".pt", ".safetensors"):
        raise UserError(f"{target} must end in .pth, .pt or .safetensors")
    if (source / "model").is_dir() and (source / "started").is_file():
        source = source / "model"
    if is_packed(source):
        raise UserError(f"{source} is packed: its bits are no weights to convert; take what it was packed from")
    model = BinaryClassifier.from_pretrained(source)
    chosen: Any = form or read_metadata(source / WEIGHTS).get("form", "timm")
    state = to_form(model.network, chosen)
    if target.suffix == ".safetensors":
        save_weights(target, state, {"format": "pt"})
    else:
        save_checkpoint(target, {"model": state})
    return f"{target}: {len(state)} tensors by the names of {chosen}"
