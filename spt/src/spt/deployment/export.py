"""The tuned model leaves the house: a plain timm model as weights, torch.export or ONNX, with no trace of SPT."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from paperkit.errors import UserError
from paperkit.files.weights import save_weights


def plain_example(model: nn.Module, batch: int = 2) -> torch.Tensor:
    """A random input of the model's own size."""
    channels = model.patch_embed.proj.in_channels if hasattr(model, "patch_embed") else 3  # type: ignore[union-attr]
    size = model.patch_embed.img_size if hasattr(model, "patch_embed") else (224, 224)  # type: ignore[union-attr]
    return torch.randn(batch, int(channels), *size, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type, misc]


def save_plain(model: nn.Module, path: str | Path) -> None:
    """Weights in timm's keys."""
    save_weights(path, model.state_dict())


def save_exported(model: nn.Module, path: str | Path) -> None:
    """A ``torch.export`` program (.pt2) for any batch size."""
    program = _program(model)
    _replace(Path(path), lambda temporary: torch.export.save(program, temporary))


def save_onnx(model: nn.Module, path: str | Path) -> None:
    """One ONNX file for any batch size.

    Raises:
        UserError: when onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; install spt[onnx]") from error
    model = model.eval()
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.onnx.export(
        model,
        (plain_example(model),),
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    _replace(Path(path), lambda temporary: program.save(temporary, external_data=False))


def _program(model: nn.Module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model.eval(), (plain_example(model),), dynamic_shapes=({0: batch},))


def _replace(path: Path, write: object) -> None:
    """Writes beside the target and renames."""
    temporary = path.with_name(f"{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        write(str(temporary))  # type: ignore[operator]
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
