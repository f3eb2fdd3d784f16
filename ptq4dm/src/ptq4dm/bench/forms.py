"""What a packed U-Net is raced against: each float32, bf16 and int8 form that a user can install.

A form is called with tensors and gives a tensor, as in a sampler. A rival that is not installed, cannot take the
network, or whose turn comes after the time for preparing is used up, is left out with a line that says so.
"""

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq4dm.deployment.exporting import Call

Form = Callable[..., Tensor]
"""Sample, time steps, and the context if there is one, to the predicted noise."""
Inputs = tuple[Tensor, ...]
EAGER, COMPILED, ONNX, OPENVINO = "torch float32", "torch float32, compiled", "onnxruntime float32", "openvino float32"
FLOAT32 = (EAGER, COMPILED, ONNX, OPENVINO)
"""The float32 forms of which the fastest counts."""
BF16 = "torch bfloat16"
INT8_ONNX, INT8_OPENVINO = "onnxruntime int8, dynamic", "openvino + nncf int8, static"
TORCHAO, QUANTO = "torchao int8", "quanto int8"
INT8 = (TORCHAO, QUANTO)
"""Those that packed integers have to be ahead of."""


def forms(
    unet: nn.Module, calibration: Sequence[Inputs], threads: int, seconds: float, left_out: Callable[[str], None]
) -> dict[str, Form]:
    """Every rival that can take the network, by name.

    Args:
        calibration: inputs of the batch that is raced; static forms take their ranges from them.
        seconds: for preparing; after that no further rival is begun.
        left_out: gets a line for each that is not there.
    """
    float32, first = Call(unet).eval(), calibration[0]
    found: dict[str, Form] = {EAGER: float32}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "unet.onnx"
        makers: dict[str, Callable[[], Form]] = {
            ONNX: lambda: _onnxruntime(_exported(float32, first, path), threads),
            OPENVINO: lambda: _openvino(path, (), threads),
            TORCHAO: lambda: _torchao(float32),
            QUANTO: lambda: _quanto(float32, calibration),
            BF16: lambda: _bfloat16(float32),
            INT8_OPENVINO: lambda: _openvino(path, calibration, threads),
            INT8_ONNX: lambda: _onnxruntime(_dynamic(path), threads),
            COMPILED: lambda: torch.compile(copy.deepcopy(float32), dynamic=False),
        }
        for name, make in makers.items():
            if time.monotonic() - start > seconds:
                left_out(f"{name} is left out: the {seconds:g} s for preparing are over")
                continue
            try:
                form = make()
                form(*first)
                found[name] = form
            except Exception as error:  # each rival has errors of its own
                lines = str(error).splitlines() or [type(error).__name__]
                left_out(f"{name} is left out: {lines[0][:200]}")
    return found


def _exported(model: nn.Module, inputs: Inputs, path: Path) -> Path:
    """By tracing: torch.export takes minutes for a network of some hundred layers."""
    torch.onnx.export(model, inputs, str(path), dynamo=False, opset_version=17)
    return path


def _onnxruntime(path: Path, threads: int) -> Form:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def call(*inputs: Tensor) -> Tensor:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return call


def _dynamic(path: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)
    out = path.with_name("int8.onnx")
    quantize_dynamic(str(path), str(out))
    return out


def _openvino(path: Path, calibration: Sequence[Inputs], threads: int) -> Form:
    """In float32, or in int8 with `calibration`; without the correction of biases, which takes minutes."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    if calibration:
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        data = nncf.Dataset([[value.numpy() for value in inputs] for inputs in calibration])
        plain = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
        model = nncf.quantize(model, data, subset_size=len(calibration), advanced_parameters=plain)
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", options)
    return lambda *inputs: torch.from_numpy(compiled([value.numpy() for value in inputs])[0])


def _bfloat16(model: nn.Module) -> Form:
    half = copy.deepcopy(model).bfloat16()
    return lambda *inputs: half(*(v.bfloat16() if v.is_floating_point() else v for v in inputs)).float()


def _torchao(model: nn.Module) -> Form:
    """Linear layers with int8 weights and inputs: torchao has no int8 convolution."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    made = copy.deepcopy(model)
    quantize_(made, Int8DynamicActivationInt8WeightConfig())
    return made


def _quanto(model: nn.Module, calibration: Sequence[Inputs]) -> Form:
    """int8 weights and activations, calibrated on the inputs."""
    from optimum.quanto import Calibration, freeze, qint8, quantize

    made: Any = copy.deepcopy(model)
    quantize(made, weights=qint8, activations=qint8)
    with torch.no_grad(), Calibration():
        for inputs in calibration:
            made(*inputs)
    freeze(made)
    return made
