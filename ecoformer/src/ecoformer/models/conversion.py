"""Weights from one kind of attention to the next, as released, and checkpoint files to folders and back.

Only parameters are carried over, never buffers: SRA -> MSA (`qkv` = q over kv; `sr` and `attn.norm` are dropped), and
MSA -> EcoFormer (`to_qk` = the query rows, `to_v` = the value rows; the key rows are thrown away). The last stage keeps
full attention.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ecoformer.models.pvt import PVTv2
from ecoformer.models.released import (
    describe_released,
    fit_released,
    joined,
    read_released,
    size_name,
    split_leftovers,
    to_released,
)
from ecoformer.models.twins import Twins
from paperkit.errors import UserError
from paperkit.files.hub import CONFIG, WEIGHTS, read_config, replaced_folder
from paperkit.files.keys import KeyReport, load_report
from paperkit.files.weights import load_strict, read_weights, save_checkpoint, save_weights
from paperkit.verification.bounds import at_most

REST = "rest.safetensors"


def sra_to_msa(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reduced attention to full: `qkv = cat(q, kv)`; the convolution and norm before the keys are dropped."""
    dropped = (".attn.sr.weight", ".attn.sr.bias", ".attn.norm.weight", ".attn.norm.bias")
    return {key: value for key, value in joined(state).items() if not key.endswith(dropped)}


def msa_to_ecoformer(state: Mapping[str, Tensor], keeps: Any = None) -> dict[str, Tensor]:
    """Full attention to EcoFormer or shared-QK: query rows to `to_qk`, value rows to `to_v`.

    Args:
        keeps: function that says of an attention layer's name (`block4.0.attn`) whether it stays as it is; the last
            stage's do without.
    """
    last = last_stage(state)
    keeps = keeps or (lambda stem: stem.startswith(last))
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        stem, found, kind = key.partition(".qkv.")
        if not found or keeps(stem):
            out[key] = value
            continue
        width = value.shape[0] // 3
        out[f"{stem}.to_qk.{kind}"], out[f"{stem}.to_v.{kind}"] = value[:width].clone(), value[-width:].clone()
    return out


def last_stage(state: Mapping[str, Tensor]) -> str:
    """How the names of the last stage's blocks begin: `block4.` or `blocks.3.`."""
    stages = {key.split(".")[0] + "." for key in state if key.startswith("block") and not key.startswith("blocks.")}
    stages |= {".".join(key.split(".")[:2]) + "." for key in state if key.startswith("blocks.")}
    if not stages:
        raise UserError(f"no block1.* or blocks.0.* among {len(state)} keys: these are no weights of PVTv2 or Twins")
    return max(stages)


def start_from(model: nn.Module, state: Mapping[str, Tensor]) -> KeyReport:
    """Begins a network with the weights of one of another attention (the released `--finetune`), by the rules above.

    Returns:
        What did not fit, and so keeps its initialisation; hashes are among it and are fitted in training.

    Raises:
        UserError: nothing fits.
    """
    wanted = model.state_dict()
    state, _ = split_leftovers(state)
    if not any(key.endswith(".attn.q.weight") for key in wanted):
        state = sra_to_msa(state)
    shared = {key.removesuffix(".to_qk.weight") for key in wanted if key.endswith(".to_qk.weight")}
    if shared:
        state = msa_to_ecoformer(state, lambda stem: stem not in shared)
    buffers = {name for name, _ in model.named_buffers()}
    state = {key: value for key, value in state.items() if key not in buffers}
    for key in ("head.weight", "head.bias"):
        if key in state and key in wanted and state[key].shape != wanted[key].shape:
            del state[key]  # another number of classes
    if not any(key in wanted and wanted[key].shape == value.shape for key, value in state.items()):
        raise UserError(f"none of the {len(state)} weights fits a {type(model).__name__}")
    return load_report(model, state)


def to_folder(source: Path, target: Path, trust_pickle: bool = False, **changes: Any) -> str:
    """Writes a folder of `save_pretrained` from a released file; returns a line that says what is in it.

    Args:
        changes: constructor arguments in place of those read from the file (`num_heads`, `block`, `windows`, `nbits`).

    Raises:
        UserError: a damaged file, neither PVTv2 nor Twins, other bits than asked for, keys that do not fit.
    """
    state = read_released(source, trust_pickle)
    kind, options = describe_released(state, str(source))
    options.update({key: value for key, value in changes.items() if value is not None})
    model = kind(**options)
    own, rest = fit_released(state, model), split_leftovers(state)[1]
    load_strict(model, own, str(source))
    with replaced_folder(target) as folder:
        save_weights(folder / WEIGHTS, own, {"format": "pt"})
        if rest:
            save_weights(folder / REST, rest, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(options, indent=2) + "\n")
    unfitted = sum(key.endswith(".fitted") and not bool(value) for key, value in own.items())
    notes = (f", {len(rest)} unused projections in {REST}" if rest else "") + (
        f", {unfitted} hashes never fitted" if unfitted else ""
    )
    return f"{target}: {kind.__name__} ({size_name(options) or 'no published size'}), {len(own)} tensors{notes}"


def to_file(source: Path, target: Path) -> str:
    """Writes a .pth file of the authors' form from a folder; returns a line that says what is in it.

    Raises:
        UserError: a folder that lacks its files, or another suffix.
    """
    if target.suffix not in (".pth", ".pt"):
        raise UserError(f"{target} must end in .pth")
    if not (source / WEIGHTS).is_file():
        raise UserError(f"{source} has no {WEIGHTS}; `ecoformer convert FILE FOLDER` makes such a folder")
    model = load_classifier(source)
    left = read_weights(source / REST) if (source / REST).is_file() else None
    state = to_released(model, left)
    save_checkpoint(target, {"model": state})
    return f"{target}: model with {len(state)} tensors"


def load_classifier(path: str | Path, trust_pickle: bool = False, **changes: Any) -> PVTv2 | Twins:
    """A classifier in eval mode from a run folder, a folder of `save_pretrained` or a released file.

    Args:
        changes: constructor arguments in place of those found; None leaves one alone.

    Raises:
        UserError: what is no PVTv2 or Twins, other bits, keys that do not fit.
    """
    path = Path(path)
    if (path / "model" / WEIGHTS).is_file():
        path = path / "model"
    if path.is_dir():
        state = read_weights(path / WEIGHTS)
        kind, options = describe_released(state, str(path))
        if (path / CONFIG).is_file():
            options = read_config(path)
    else:
        state = read_released(path, trust_pickle)
        kind, options = describe_released(state, str(path))
    options.update({key: value for key, value in changes.items() if value is not None})
    try:
        with at_most(state.values()):
            model = kind(**options)
    except (TypeError, UserError) as error:
        raise UserError(f"{path}: its config does not describe a {kind.__name__}: {error}") from None
    load_strict(model, fit_released(state, model), str(path))
    return model.eval()
