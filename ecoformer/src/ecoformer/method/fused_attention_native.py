"""EcoFormer's attention for inference on a CPU in C++ (`fused_attention_native.cpp`, whose head says how it goes).

The numbers are those of `fused_attention`, sums in another order: a code may differ where the number whose sign it is
lies within rounding of 0. Compiled on first use for the very processor; where there is no compiler, a warning says so
once and callers take the plain form.

Shapes: B batch, H heads, N tokens, C head width, m supports, b bits.
"""

import ctypes
import functools
import platform
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from paperkit.native import library

SOURCE = Path(__file__).with_suffix(".cpp")
ARM = platform.machine() in ("arm64", "aarch64")
FLAGS = ("-mcpu=native" if ARM else "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
ARGUMENTS = struct.Struct("21q")  # of `ecoformer_attention`; ctypes would take microseconds to convert them
LONGEST_CODE = 32
"""Bits: a code is one machine word."""


@functools.cache
def kernel() -> Callable[..., int] | None:
    """The compiled function; None where it cannot be had."""
    loaded = library("ecoformer-attention", [SOURCE], flags=FLAGS)
    if loaded is None:
        return None
    function = loaded.ecoformer_attention
    function.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_int, ctypes.c_int]
    return function


def native_attention(
    qk: Tensor, v: Tensor, anchor: Tensor, mvec: Tensor, A: Tensor, bias: float, mode: str = "released"
) -> Tensor | None:
    """Unnormalised query-key vectors and values (B, H, N, C) to (B, H, N, C); None where the kernel does not serve.

    It serves tensors of float32 on a CPU without gradients, outside of compilers and tracers, codes of 32 bits at most.
    Strided views are read in place when their last axis is contiguous, and heads join for nothing: in memory the result
    is (B, N, H, C). A NaN or an infinity in a head of qk makes the head NaN, as in the plain form.

    Args:
        anchor, mvec, A: (1, H, m, C), (1, H, 1, m), (H, b, m) of a fitted hash. bias: c. mode: "released" or "global".
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(qk) is not Tensor or type(v) is not Tensor:
        return None
    tensors = (qk, v, anchor, mvec, A)
    if not all(t.is_cpu and t.dtype == torch.float32 and t.layout == torch.strided for t in tensors):
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return None
    (heads, bits, supports), (batch, _, tokens, width) = A.shape, qk.shape
    fits = qk.shape == v.shape == (batch, heads, tokens, width) and bits <= LONGEST_CODE and qk.numel() > 0
    if not fits or anchor.numel() != heads * supports * width or mvec.numel() != heads * supports:
        return None
    if (function := kernel()) is None:
        return None
    qk, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (qk, v))
    anchor, mvec, A = anchor.contiguous(), mvec.contiguous(), A.contiguous()
    strides = (tokens * heads * width, width, heads * width)
    out = torch.empty_strided(qk.shape, (*strides, 1))
    addresses = [t.data_ptr() for t in (qk, v, anchor, mvec, A, out)]
    sizes = batch, heads, tokens, width, supports, bits
    given = ARGUMENTS.pack(*addresses, *sizes, *qk.stride()[:3], *v.stride()[:3], *strides)
    return None if function(given, bias, mode == "global", torch.get_num_threads()) else out
