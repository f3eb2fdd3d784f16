"""What a packed U-Net is raced against: each float32, bf16 and int8 form that a user can install.

A rival that is not installed, or cannot take the network, is left out with a line that says so.
"""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq4dm.deployment.exporting import Call

Step = Callable[[], object]
Inputs = tuple[Tensor, ...]
EAGER, COMPILED, ONNX, OPENVINO = "torch float32", "torch float32, compiled", "onnxruntime float32", "openvino float32"
FLOAT32 = (EAGER, COMPILED, ONNX, OPENVINO)
"""The float32 forms of which the fastest counts."""
BF16 = "torch bfloat16"
INT8_ONNX, INT8_OPENVINO = "onnxruntime int8, dynamic", "openvino + nncf int8, static"
TORCHAO, QUANTO = "torchao int8", "quanto int8"
INT8 = (TORCHAO, QUANTO)
"""Those that packed integers have to be ahead of."""


def steps(unet: nn.Module, inputs: Inputs, threads: int, left_out: Callable[[str], None]) -> dict[str, Step]:
    """Every rival that can take the network, by name; `left_out` gets a line for each that cannot."""
    float32 = Call(unet).eval()
    found: dict[str, Step] = {EAGER: partial(float32, *inputs)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "unet.onnx"
        makers: dict[str, Callable[[], Step]] = {
            COMPILED: lambda: partial(torch.compile(copy.deepcopy(float32), dynamic=False), *inputs),
            ONNX: lambda: _onnxruntime(_exported(float32, inputs, path), inputs, threads),
            OPENVINO: lambda: _openvino(path, inputs, threads, False),
            BF16: lambda: _bfloat16(float32, inputs),
            INT8_ONNX: lambda: _onnxruntime(_dynamic(path), inputs, threads),
            INT8_OPENVINO: lambda: _openvino(path, inputs, threads, True),
            TORCHAO: lambda: _torchao(float32, inputs),
            QUANTO: lambda: _quanto(float32, inputs),
        }
        for name, make in makers.items():
            try:
                step = make()
                step()
                found[name] = step
            except Exception as error:  # each rival has errors of its own
                lines = str(error).splitlines() or [type(error).__name__]
                left_out(f"{name} is left out: {lines[0][:200]}")
    return found


def _exported(model: nn.Module, inputs: Inputs, path: Path) -> Path:
    program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path))
    return path


def _onnxruntime(path: Path, inputs: Inputs, threads: int) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return partial(session.run, None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})


def _dynamic(path: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)
    out = path.with_name("int8.onnx")
    quantize_dynamic(str(path), str(out))
    return out


def _openvino(path: Path, inputs: Inputs, threads: int, int8: bool) -> Step:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    arrays = [value.numpy() for value in inputs]
    if int8:
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        model = nncf.quantize(model, nncf.Dataset([arrays]), subset_size=1)
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return partial(core.compile_model(model, "CPU", options), arrays)


def _bfloat16(model: nn.Module, inputs: Inputs) -> Step:
    half = [value.bfloat16() if value.is_floating_point() else value for value in inputs]
    return partial(copy.deepcopy(model).bfloat16(), *half)


def _torchao(model: nn.Module, inputs: Inputs) -> Step:
    """Linear layers with int8 weights and inputs: torchao has no int8 convolution."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    made = copy.deepcopy(model)
    quantize_(made, Int8DynamicActivationInt8WeightConfig())
    return partial(made, *inputs)


def _quanto(model: nn.Module, inputs: Inputs) -> Step:
    """int8 weights and activations, calibrated on the inputs."""
    from optimum.quanto import Calibration, freeze, qint8, quantize

    made: Any = copy.deepcopy(model)
    quantize(made, weights=qint8, activations=qint8)
    with torch.no_grad(), Calibration():
        made(*inputs)
    freeze(made)
    return partial(made, *inputs)
