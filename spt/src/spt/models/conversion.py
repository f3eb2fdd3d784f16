"""Released backbone files to safetensors in timm's keys, and back to the same tensors."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import load_report, read_metadata, read_weights, save_checkpoint, save_weights
from spt.models.backbones import Format, read_backbone, read_google, state_to_npz, timm_to_swin

Target = Literal["timm", "npz", "mae", "moco", "swin"]


def aside_path(path: Path) -> Path:
    """Where what is not the backbone is kept: `x.safetensors` -> `x.aside.safetensors`."""
    return path.with_name(f"{path.stem}.aside.safetensors")


def convert_file(
    source: str | Path,
    target: str | Path,
    model: nn.Module,
    to: Target,
    format: Format | None = None,
    trust_pickle: bool = False,
    part: str | None = None,
) -> list[str]:
    """Converts; returns lines that say what was done.

    Args:
        model: plain timm model of the file's architecture, which the weights must fit (its head excepted).
        part: which of several state dicts in the file.

    Raises:
        UserError: for a file that cannot be read or does not fit, naming the keys.
    """
    source, target = Path(source), Path(target)
    if to == "timm":
        state, aside = read_backbone(source, model, format, trust_pickle, part=part)
        check_fit(model, state, str(source))
        if target.suffix != ".safetensors":
            raise UserError(f"{target}: the project's own weights are .safetensors")
        prefix = read_google(source)[1] if source.suffix == ".npz" else ""
        save_weights(target, state, {"source_prefix": prefix})
        lines = [f"{target}: {len(state)} tensors in timm's keys"]
        if aside:
            save_weights(aside_path(target), aside)
            lines.append(
                f"{aside_path(target)}: {len(aside)} tensors that are not the backbone's ({next(iter(aside))}, ...)"
            )
        return lines
    state = read_weights(source)
    check_fit(model, state, str(source))
    aside = read_weights(aside_path(source)) if aside_path(source).is_file() else {}
    if to == "npz":
        heads = model.blocks[0].attn.num_heads  # type: ignore[index, union-attr]
        prefix = read_metadata(source).get("source_prefix", "")
        arrays = {**state_to_npz(state, heads), **{name: value.numpy() for name, value in aside.items()}}
        buffer = io.BytesIO()
        named: dict[str, Any] = {f"{prefix}{name}": value for name, value in arrays.items()}
        numpy.savez(buffer, **named)
        write_atomic(target, buffer.getvalue())
    else:
        save_checkpoint(target, released_content(state, aside, to))
    return [f"{target}: {len(state) + len(aside)} tensors in the layout {to}"]


def released_content(state: dict[str, Tensor], aside: dict[str, Tensor], to: Target) -> dict[str, dict[str, Tensor]]:
    """What the authors' file of this layout holds."""
    if to == "swin":
        return {"model": timm_to_swin(state, aside)}
    if to == "moco":
        return {"state_dict": {f"module.{name}": value for name, value in {**state, **aside}.items()}}
    return {"model": {**state, **aside}}


def check_fit(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Every key must fit but those of the head.

    Raises:
        UserError: naming missing, unexpected and misshapen keys.
    """
    own = {name: value for name, value in model.state_dict().items() if "head" in name}
    body = {name: value for name, value in state.items() if "head" not in name}
    report = load_report(model, {**body, **own})
    if not report.fits:
        raise UserError(f"{source} does not fit {type(model).__name__}: {report.message()}")
