"""A model as one file that runs without this code: a `torch.export` program (.pt2) or ONNX, checked after writing.

Both files are written whole or not at all, and each is read back and run on a second input, with another batch size
where the batch is free: the returned figure is the largest difference from the model itself.
"""

import importlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError, one_line
from paperkit.files.atomic import write_atomic

Outputs = Tensor | Sequence[Tensor]


def export_program(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    second: Tensor | None = None,
    check_guards: bool = True,
) -> float:
    """Writes a `torch.export` program, reads it back, and returns its largest difference from the model.

    Args:
        model: takes one tensor (B, ...) and gives a tensor or a sequence of them. Is put into eval mode.
        example: what it is traced with; with a free batch, one of a single entry is traced as two.
        path: the file to write, FILE.pt2.
        dynamic_batch: any B; otherwise that of `example`.
        dynamic_shapes: of `torch.export.export`, in place of what `dynamic_batch` says: which further sizes are free.
        second: input of the comparison; random numbers of the example's shape, with one more entry where B is free.
        check_guards: whether the program refuses inputs that its tracing did not foresee.

    Raises:
        UserError: if the model cannot be exported, or the file cannot be written.
    """
    path, model = Path(path), model.eval()
    example, shapes, second = _inputs(example, dynamic_batch, dynamic_shapes, second)

    def exported() -> bytes:
        buffer = io.BytesIO()
        torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), buffer)
        return buffer.getvalue()

    write_atomic(path, _or_one_line(exported, model, "torch.export"))
    loaded = torch.export.load(str(path)).module(check_guards=check_guards)
    with torch.no_grad():
        return _largest_difference(_listed(loaded(second)), _listed(model(second)))


def export_onnx(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    second: Tensor | None = None,
    input_name: str = "images",
    output_names: Sequence[str] = ("logits",),
) -> float:
    """Writes one ONNX file, weights inside, and returns the largest difference of onnxruntime's outputs.

    NaN where onnxruntime is not installed: the file is then written but not compared.

    Args:
        model, example, path, dynamic_batch, dynamic_shapes, second: as for `export_program`; the file is FILE.onnx.
        input_name, output_names: as the file's users will see them.

    Raises:
        UserError: if onnx or onnxscript are not installed, the model cannot be exported, its weights are more than one
            ONNX file holds (2 GiB), or the file cannot be written.
    """
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError:
            message = f"ONNX export needs {name}, which is not installed; install it with: pip install 'paperkit[onnx]'"
            raise UserError(message) from None
    path, model = Path(path), model.eval()
    example, shapes, second = _inputs(example, dynamic_batch, dynamic_shapes, second)

    def exported() -> bytes:
        program = torch.onnx.export(
            model,
            (example,),
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        return program.model_proto.SerializeToString()

    write_atomic(path, _or_one_line(exported, model, "ONNX"))
    try:
        import onnxruntime
    except ImportError:
        return float("nan")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {input_name: second.cpu().numpy()})
    with torch.no_grad():
        return _largest_difference([torch.from_numpy(value) for value in found], _listed(model(second)))


def _inputs(example: Tensor, dynamic_batch: bool, shapes: Any, second: Tensor | None) -> tuple[Tensor, Any, Tensor]:
    """The traced input, the free sizes and the input of the comparison."""
    if dynamic_batch and len(example) == 1:  # a traced size of 1 is taken for a fixed one
        example = torch.cat([example, example])
    if shapes is None and dynamic_batch:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
    if second is None:
        shape = (len(example) + dynamic_batch, *example.shape[1:])
        second = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(example)
    return example, shapes, second


def _or_one_line(exported: Callable[[], bytes], model: nn.Module, form: str) -> bytes:
    try:
        return exported()
    except Exception as error:  # torch, its compiler and protobuf each raise their own
        first = one_line(next((line for line in str(error).splitlines() if line.strip()), ""))[:200]
        reason = f"{type(error).__name__}: {first}".rstrip(": ")
        raise UserError(f"{type(model).__name__} cannot be exported to {form}: {reason}") from error


def _listed(outputs: Outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _largest_difference(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return torch.stack([(a.cpu().double() - b.cpu().double()).abs().max() for a, b in pairs]).max().item()  # NaN stays
