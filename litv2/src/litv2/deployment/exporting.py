"""The classifier outside of Python: torch.export and ONNX, batch and image size free.

The merging exports in its `grid_sample` form. The fused network is what is exported: BatchNorm is folded, maps that
read the same input are stacked.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from litv2.deployment.fused import fuse
from litv2.models.classifier import LITv2
from litv2.models.pyramid import SMALLEST_IMAGE
from paperkit.errors import UserError
from paperkit.files.runs import write_atomic

LARGEST = 128  # times 32 pixels: the largest side of an exported program


def export_program(model: LITv2, multiple: int = 32) -> ExportedProgram:
    """torch.export with free batch, and free height and width in multiples of ``multiple`` px, 32 px at least.

    Raises:
        UserError: LITv1, whose positions are bound to one size; a multiple that is not one of 32.
    """
    if multiple % 32 or multiple < 32:
        raise UserError(f"multiple {multiple} must be a multiple of 32 px: the stride of the last stage")
    _refuse_fixed(model)
    height, width = (multiple * Dim(name, min=1, max=LARGEST * 32 // multiple) for name in ("rows", "columns"))
    shapes = {"image": {0: Dim("batch", min=1, max=1024), 2: height, 3: width}}
    return torch.export.export(fuse(model), (_example(model),), dynamic_shapes=shapes)


def export_onnx(model: LITv2, path: Path) -> None:
    """ONNX (opset 18, by torch's dynamo exporter) with free batch, height and width, each side 32 px or more.

    Raises:
        UserError: LITv1; the exporter's packages are missing; the file cannot be written.
    """
    _refuse_fixed(model)
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("ONNX export needs onnx and onnxscript: pip install 'litv2[onnx]'") from None
    shapes = {"image": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    program = torch.onnx.export(
        fuse(model), (_example(model, 70, 102),), input_names=["image"], output_names=["logits"],
        dynamic_shapes=shapes, dynamo=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    write_atomic(path, program.model_proto.SerializeToString())


def save_program(program: ExportedProgram, path: Path) -> None:
    """Writes a torch.export program, whole or not at all."""
    import io

    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomic(path, buffer.getvalue())


def onnx_difference(path: Path, model: LITv2, image: Tensor) -> float:
    """Largest difference of onnxruntime's logits from PyTorch's on an image, relative to the largest logit."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    with torch.no_grad():
        expected = model(image)
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _example(model: LITv2, height: int = 2 * SMALLEST_IMAGE, width: int = 3 * SMALLEST_IMAGE) -> Tensor:
    return torch.randn(2, model.in_chans, height, width, generator=torch.Generator().manual_seed(0))


def _refuse_fixed(model: LITv2) -> None:
    if any(name.endswith("relative_position_bias_table") for name, _ in model.named_parameters()):
        raise UserError("LITv1's relative positions are bound to one image size; only LITv2 exports with free sizes")


def load_program(path: Path) -> torch.nn.Module:
    """A saved program as a module, right from 32 px on.

    Without torch's guards: some only note which memory layout was traced and would turn sides of 32 px down, at which
    the program's results are right (tested).
    """
    return torch.export.load(path).module(check_guards=False)
