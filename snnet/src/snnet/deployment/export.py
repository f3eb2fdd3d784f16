"""One configuration written as a file that runs without this package: torch.export or ONNX, free batch size."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from paperkit.errors import UserError
from paperkit.files.runs import write_atomic


def export_torch(model: nn.Module, input_size: Sequence[int], path: Path) -> float:
    """Write a `torch.export` program and return the largest difference of its logits, read back, from the model's.

    Args:
        model: in eval mode.
        input_size: (channels, H, W).
    """
    program = torch.export.export(model, (_images(2, input_size),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomic(path, buffer.getvalue())
    loaded = torch.export.load(str(path)).module()
    images = _images(3, input_size)
    with torch.no_grad():
        return (loaded(images) - model(images)).abs().max().item()


def export_onnx(model: nn.Module, input_size: Sequence[int], path: Path) -> float:
    """Write an ONNX file and return the largest difference of its logits under onnxruntime from the model's.

    Raises:
        UserError: if onnx or onnxruntime are not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it and says so less clearly
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}; install it with: pip install 'snnet[onnx]'") from None
    program = torch.onnx.export(
        model,
        (_images(2, input_size),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    write_atomic(path, program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = _images(3, input_size)
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        return (torch.from_numpy(logits) - model(images)).abs().max().item()


def _images(batch: int, input_size: Sequence[int]) -> torch.Tensor:
    return torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(batch))
