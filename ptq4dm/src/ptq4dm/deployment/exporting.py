"""A quantised U-Net outside of Python: torch.export and ONNX, compared after writing.

Both hold the simulated network: float weights on their grid, and quantising of inputs in float. Integers are what
`ptq4dm pack` writes.
"""

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError, one_line
from paperkit.files.atomic import write_atomic
from ptq4dm.method.quant_model import quant_layers

FORMS = {"torch": "unet.pt2", "onnx": "unet.onnx"}
MOST_IMAGES = 63
"""Of a batch: from 64 on diffusers' upsampling takes another branch, and a program has one."""
NAMES = ("sample", "timestep", "context")


class Call(nn.Module):
    """A U-Net of diffusers with tensors alone as inputs and output."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Predicted noise, as `x` (B, C, H, W), at time steps `t` (B,); `context` (B, T, E)."""
        given = (x, t) if context is None else (x, t, context)
        found: tuple[Tensor, ...] = self.unet(*given, return_dict=False)
        return found[0]


def example_of(unet: Any, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs of a network's own size."""
    draw = torch.Generator().manual_seed(seed)
    size, config = unet.config.sample_size, unet.config
    sides = (size, size) if isinstance(size, int) else tuple(size)
    inputs: tuple[Tensor, ...] = (
        torch.randn(batch, config.in_channels, *sides, generator=draw),
        torch.randint(1, 1000, (batch,), generator=draw),
    )
    if wide := config.get("cross_attention_dim"):
        inputs += (torch.randn(batch, 1, wide, generator=draw),)
    return inputs


def export(unet: nn.Module, folder: Path, form: str = "torch") -> tuple[Path, float, float]:
    """Writes a quantised network, reads it back and runs it on a second input of another batch.

    A code at a tie may fall to the other side elsewhere, so the differences hold a few of those.

    Returns:
        The file, the root mean square of the difference, and that of the outputs.

    Raises:
        UserError: a form that is not in `FORMS`, a network that is not quantised or cannot be exported, a file that
            cannot be written, a missing onnx.
    """
    if form not in FORMS:
        raise UserError(f"form '{form}' is none of {', '.join(FORMS)}")
    if not quant_layers(unet):
        raise UserError(f"this {type(unet).__name__} is not quantised")
    call, path = Call(copy.deepcopy(unet)).eval().requires_grad_(False), folder / FORMS[form]
    example, second = example_of(unet), example_of(unet, batch=3, seed=1)
    shapes = tuple({0: torch.export.Dim("batch", min=1, max=MOST_IMAGES)} for _ in example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            written = (_program if form == "torch" else _onnx)(call, example, shapes)
        except Exception as error:  # torch, its compiler and protobuf each raise their own
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise UserError(
                f"{type(unet).__name__} cannot be exported to {form}: {one_line(lines[0])[:200]}"
            ) from error
        write_atomic(path, written)
        expected = call(*second)
        found = torch.export.load(path).module()(*second) if form == "torch" else _run(path, second)
    return path, float((found - expected).pow(2).mean().sqrt()), float(expected.pow(2).mean().sqrt())


def _program(call: nn.Module, example: tuple[Tensor, ...], shapes: Any) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(call, example, dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


def _onnx(call: nn.Module, example: tuple[Tensor, ...], shapes: Any) -> bytes:
    names = NAMES[: len(example)]
    program = torch.onnx.export(
        call, example, input_names=names, output_names=["noise"], dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _run(path: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {name: value.numpy() for name, value in zip(NAMES, inputs, strict=False)}
    return torch.from_numpy(session.run(None, given)[0])
