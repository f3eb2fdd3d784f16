"""What packed layers are raced against: each float32 and int8 form of a network that a user can install.

A rival that is not installed, or cannot take a network, is left out with a line that says so.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.export import export_onnx

TORCH, MEDIUM, ONNX = "torch float32", "torch float32, medium", "onnxruntime float32"
FLOAT32 = (TORCH, MEDIUM, ONNX)
"""The float32 forms of which the fastest counts."""
BF16, INT8_TORCH = "torch bfloat16", "torch int8, dynamic"
INT8_ONNX, FLOAT_OPENVINO, INT8_OPENVINO = (
    "onnxruntime int8, dynamic",
    "openvino float32",
    "openvino + nncf int8, static",
)
INT8 = (INT8_ONNX, INT8_OPENVINO)
"""The strongest int8 that can be installed."""
Step = Callable[[], object]


def at_tier(step: Step, tier: str) -> Step:
    """A step with its tier forced."""

    def run() -> object:
        os.environ["BIVIT_TIER"] = tier
        try:
            return step()
        finally:
            del os.environ["BIVIT_TIER"]

    return run


def medium(step: Step) -> Step:
    """A step under `torch.set_float32_matmul_precision("medium")`."""

    def run() -> object:
        torch.set_float32_matmul_precision("medium")
        try:
            return step()
        finally:
            torch.set_float32_matmul_precision("highest")

    return run


def float_steps(model: nn.Module, x: Tensor) -> dict[str, Step]:
    """torch's forms of a float network: float32, "medium" where that still is float32 (it may round to bfloat16)."""
    steps: dict[str, Step] = {TORCH: partial(model, x)}
    exact, rough = steps[TORCH](), medium(steps[TORCH])()
    assert isinstance(exact, Tensor) and isinstance(rough, Tensor)
    if (exact - rough).abs().max() <= 1e-4 * exact.abs().max():
        steps[MEDIUM] = medium(steps[TORCH])
    else:
        steps["torch medium (rounds to bfloat16)"] = medium(steps[TORCH])
    return steps


def exported_steps(
    model: nn.Module, x: Tensor, threads: int, int8: bool, left_out: Callable[[str], None]
) -> dict[str, Step]:
    """onnxruntime's forms of a float network, and openvino's; `left_out` takes a line for each that is not there."""
    steps: dict[str, Step] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        try:
            export_onnx(model, x, path, dynamic_batch=False)
            steps[ONNX] = _onnxruntime(path, x, threads)
            if int8:
                steps[INT8_ONNX] = _onnxruntime(_quantised(path), x, threads)
        except Exception as error:
            left_out(f"onnxruntime: {str(error).splitlines()[0][:200]}")
        if int8 and path.exists():
            try:
                steps |= _openvino(path, x, threads)
            except ImportError as error:
                left_out(f"openvino and nncf: {error}; install them with: pip install 'bivit[bench]'")
            except Exception as error:
                left_out(f"openvino and nncf: {str(error).splitlines()[0][:200]}")
    return steps


def _onnxruntime(path: Path, x: Tensor, threads: int) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: x.numpy()})


def _quantised(path: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    ready, out = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    quantize_dynamic(str(ready), str(out))
    return out


def _openvino(path: Path, x: Tensor, threads: int) -> dict[str, Step]:
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    plain = core.read_model(str(path))
    samples = nncf.Dataset([torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).numpy() for i in range(8)])
    quantised = nncf.quantize(plain, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=8)
    steps: dict[str, Step] = {}
    for name, network in ((FLOAT_OPENVINO, core.read_model(str(path))), (INT8_OPENVINO, quantised)):
        compiled = core.compile_model(network, "CPU", options)
        steps[name] = partial(compiled, x.numpy())
    return steps


def dynamic_int8(layer: nn.Module, x: Tensor) -> dict[str, Step]:
    """torch's own dynamic int8 of a linear."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, torch.qint8)
    return {INT8_TORCH: partial(made, x)}


def tier_steps(step: Step, tiers: Mapping[str, str]) -> dict[str, Step]:
    """The same step at each tier: name of the form -> step."""
    return {name: at_tier(step, tier) for name, tier in tiers.items()}
