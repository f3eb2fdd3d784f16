"""The classifier outside of Python: torch.export and ONNX, batch and image size free.

The merging exports in its `grid_sample` form. The fused network is what is exported: BatchNorm is folded, maps that
read the same input are stacked.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from litv2.deployment.fused import fuse
from litv2.models.classifier import LITv2
from litv2.models.pyramid import SMALLEST_IMAGE
from paperkit.errors import UserError
from paperkit.export import export_onnx, export_program

LARGEST = 128  # times 32 pixels: the largest side of an exported program


def to_program(model: LITv2, path: Path, multiple: int = 32) -> float:
    """torch.export with free batch, and free height and width in multiples of `multiple` px, 32 px at least.

    Returns:
        The largest difference of a logit from the fused network's, the file read back.

    Raises:
        UserError: LITv1, whose positions are bound to one size; a multiple that is not one of 32.
    """
    if multiple % 32 or multiple < 32:
        raise UserError(f"multiple {multiple} must be a multiple of 32 px: the stride of the last stage")
    _refuse_fixed(model)
    height, width = (multiple * Dim(name, min=1, max=LARGEST * 32 // multiple) for name in ("rows", "columns"))
    shapes = ({0: Dim("batch", min=1, max=1024), 2: height, 3: width},)
    example, second = _images(model, 2, 2 * multiple, 3 * multiple), _images(model, 1, 3 * multiple, 2 * multiple)
    return export_program(fuse(model), example, path, dynamic_shapes=shapes, second=second, check_guards=False)


def to_onnx(model: LITv2, path: Path) -> float:
    """ONNX (opset 18, by torch's dynamo exporter) with free batch, height and width, each side 32 px or more.

    Returns:
        The largest difference of a logit of onnxruntime from the fused network's.

    Raises:
        UserError: LITv1; the exporter's packages are missing; the file cannot be written.
    """
    _refuse_fixed(model)
    shapes = {"image": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    example, second = _images(model, 2, 70, 102), _images(model, 1, 3 * SMALLEST_IMAGE, 2 * SMALLEST_IMAGE)
    return export_onnx(fuse(model), example, path, dynamic_shapes=shapes, second=second, input_name="image")


def load_program(path: Path) -> torch.nn.Module:
    """A saved program as a module, right from 32 px on.

    Without torch's guards: some only note which memory layout was traced and would turn sides of 32 px down, at which
    the program's results are right (tested).
    """
    return torch.export.load(path).module(check_guards=False)


def _images(model: LITv2, batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, model.in_chans, height, width, generator=torch.Generator().manual_seed(batch))


def _refuse_fixed(model: LITv2) -> None:
    if any(name.endswith("relative_position_bias_table") for name, _ in model.named_parameters()):
        raise UserError("LITv1's relative positions are bound to one image size; only LITv2 exports with free sizes")
