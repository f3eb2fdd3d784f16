"""The compiled parts of the quantiser (`quantizer_native.cpp`, whose head says what they do) for float32 on a CPU.

Compiled on first use for the very processor; where there is no compiler, a warning says so once and callers take the
plain form.

Shapes: O channels, K values of a channel, C candidates.
"""

import ctypes
import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

from paperkit.native import library

SOURCE = Path(__file__).with_suffix(".cpp")
NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The compiled functions; None where they cannot be had."""
    loaded = library("ptq4dm-quantizer", [SOURCE], flags=(NATIVE, "-fno-math-errno", "-fno-trapping-math"))
    if loaded is not None:
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        loaded.ptq4dm_range_scores.argtypes = [*[pointer] * 4, *[size] * 3, number, number, ctypes.c_int]
        loaded.ptq4dm_fake_quantize.argtypes = [pointer, pointer, size, pointer, pointer, number, number, ctypes.c_int]
        for function in (loaded.ptq4dm_range_scores, loaded.ptq4dm_fake_quantize):
            function.restype = None
    return loaded


def _serves(*tensors: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu and t.dtype == torch.float32 for t in tensors)


def range_scores(x_ok: Tensor, delta_oc: Tensor, zero_oc: Tensor, bottom: int, top: int) -> Tensor | None:
    """Sum of `|x - fake_quantised(x)| ** 2.4`, (O, C) in float64; None where the kernel does not serve."""
    if not _serves(x_ok, delta_oc, zero_oc) or (loaded := kernels()) is None:
        return None
    x, delta, zero = x_ok.contiguous(), delta_oc.contiguous(), zero_oc.contiguous()
    scores = torch.empty(delta.shape, dtype=torch.float64)
    addresses = [t.data_ptr() for t in (x, delta, zero, scores)]
    loaded.ptq4dm_range_scores(*addresses, *x.shape, delta.shape[1], bottom, top, torch.get_num_threads())
    return scores


def fake_quantized(x: Tensor, delta: Tensor, zero_point: Tensor, bottom: int, top: int) -> Tensor | None:
    """`x` on the grid of one step and zero point, the plain form's bits; None where the kernel does not serve.

    Nothing of it is recorded for gradients. It serves dense tensors, whose strides are kept.
    """
    if not (delta.numel() == zero_point.numel() == 1 and _serves(x, delta, zero_point)) or not x.numel():
        return None
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)) or (loaded := kernels()) is None:
        return None
    out = torch.empty_like(x)
    threads = torch.get_num_threads()
    step, zero = delta.data_ptr(), zero_point.data_ptr()
    loaded.ptq4dm_fake_quantize(x.data_ptr(), out.data_ptr(), x.numel(), step, zero, bottom, top, threads)
    return out
