"""The C++ kernels (`kernels.cpp`): which tier runs, the order in which it wants weights, and the calls.

A tier is an instruction set: "vpopcnt" (AVX-512 with VPOPCNTDQ), "avx512bw" (without it), "avx2", "portable" (compiled
everywhere), and "torch" where there is no compiler: then the layers compute in plain PyTorch. The environment variable
`BIVIT_TIER` forces one. All give the same integers.

Shapes: O outputs, I inputs, W = ceil(I / 64) words.
"""

import ctypes
import functools
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.native import cpu_features, library

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.cpp", "kernels_vectors.h", "kernels_blocks.h")]
FLAGS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
AVX2 = frozenset(("avx2", "fma", "popcnt", "bmi1", "bmi2"))
AVX512BW = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
NEEDS: dict[str, frozenset[str]] = {
    "vpopcnt": AVX512BW | {"avx512_vpopcntdq"},
    "avx512bw": AVX512BW,
    "avx2": AVX2,
    "portable": frozenset(),
    "torch": frozenset(),
}
"""Tiers, fastest first, and the processor's features that each needs."""
NUMBERS = {"vpopcnt": 1, "avx512bw": 2, "avx2": 3, "portable": 4}
MOST_INPUTS = 32_766
"""Of a layer: products are counted in 16 bits."""
RULES = {"plus": 0, "ternary": 1, "exact": 2}
LINEAR, NORM, ATTENTION = struct.Struct("10q"), struct.Struct("3qd"), struct.Struct("10q2d")
NO_LINEAR, NO_ATTENTION = LINEAR.pack(*[0] * 10), ATTENTION.pack(*[0] * 12)


@dataclass(frozen=True)
class Kernels:
    """The compiled functions at one tier."""

    tier: str
    linear: Callable[..., None]
    attention: Callable[..., None]
    block: Callable[..., None]
    unpack: Callable[..., None]

    @property
    def number(self) -> int:
        """As the C++ side counts tiers."""
        return NUMBERS[self.tier]


def available() -> tuple[str, ...]:
    """The tiers that this machine can run, fastest first; without a compiler "torch" alone."""
    if _library() is None:
        return ("torch",)
    return tuple(name for name, needs in NEEDS.items() if needs <= cpu_features())


def tier() -> str:
    """The tier that runs; without a compiler "torch", whatever is forced.

    Raises:
        UserError: `BIVIT_TIER` names one that does not exist or that the processor cannot run.
    """
    forced = os.environ.get("BIVIT_TIER")
    if not forced:
        return _best()
    if forced not in NEEDS:
        raise UserError(f"BIVIT_TIER={forced} does not exist; known: {', '.join(NEEDS)}")
    if missing := NEEDS[forced] - cpu_features():
        raise UserError(f"BIVIT_TIER={forced}: this processor lacks {', '.join(sorted(missing))}")
    return forced if forced == "torch" or _library() is not None else "torch"


def kernels() -> Kernels | None:
    """The functions of the tier that runs; None where layers are to compute in plain PyTorch."""
    return _kernels(tier())


@functools.cache
def _best() -> str:
    return available()[0]


@functools.cache
def _library() -> ctypes.CDLL | None:
    return library("bivit-kernels", SOURCES, flags=FLAGS)


@functools.cache
def _kernels(name: str) -> Kernels | None:
    if name == "torch" or (loaded := _library()) is None:
        return None
    functions = [loaded.bivit_linear, loaded.bivit_attention, loaded.bivit_block, loaded.bivit_unpack]
    pointers, long, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    functions[0].argtypes = [ctypes.c_char_p, pointers, pointers, long, integer, integer]
    functions[1].argtypes = [ctypes.c_char_p, *[pointers] * 4, long, integer, integer]
    functions[2].argtypes = [ctypes.c_char_p, pointers, pointers, long, long, integer, integer]
    functions[3].argtypes = [pointers, pointers, pointers, long, long, integer, integer]
    for function in functions:
        function.restype = None
    return Kernels(name, *functions)


# --- weights in a tier's order ---------------------------------------------------------------------------------------


def ordered(bits: Tensor, name: str) -> Tensor:
    """Packed rows (O, 8 W) uint8 as the tier reads them, in blocks of 64 output channels; the last is filled with 0."""
    outputs, width = bits.shape
    blocks, words = -(-outputs // 64), width // 8
    padded = torch.zeros(blocks * 64, width, dtype=torch.uint8)
    padded[:outputs] = bits
    if name == "vpopcnt":  # [block][half][word][vector][lane] words; channel = 32 half + 4 lane + vector
        return (
            padded.view(torch.int64).view(blocks, 2, 8, 4, words).permute(0, 1, 4, 3, 2).contiguous().view(torch.uint8)
        )
    if name in ("avx512bw", "avx2"):  # [block][byte][channel] bytes
        return padded.view(blocks, 64, width).transpose(1, 2).contiguous()
    return padded


@dataclass
class Struct:
    """Bytes of a C struct, and the tensors that its pointers point to."""

    data: bytes
    alive: Sequence[Any]


def channels(values: Tensor, fill: float = 0) -> Tensor:
    """One number per output channel, (O,), up to a multiple of 64."""
    padded = values.new_full((-(-len(values) // 64) * 64,), fill)
    padded[: len(values)] = values
    return padded


def linear_struct(
    bits: Tensor, scale: Tensor, bias: Tensor, inputs: int, rule: str, name: str, outputs: "Signs | None" = None
) -> Struct:
    """A layer as the kernels read it.

    Args:
        bits: (O, 8 W) packed rows. scale, bias: (O,), float32. inputs: I. rule: zero rule of the inputs.
        outputs: thresholds where the outputs' signs are wanted.
    """
    negative = scale < 0
    flipped = bits.clone()
    flipped[negative] ^= row_mask(inputs)  # then every scale is positive, and so is the slope of dot * scale + bias
    alive = [ordered(flipped, name), channels(scale.abs()), channels(bias)]
    signs = [channels(part, 32_767) for part in (outputs.positive, outputs.zero, outputs.low)] if outputs else []
    pointers = [part.data_ptr() for part in (*alive, *signs)] + [0] * (3 - len(signs))
    plane = outputs.plane if outputs else 0
    return Struct(LINEAR.pack(*pointers, inputs, len(scale), RULES[rule], plane), [*alive, *signs])


def row_mask(inputs: int) -> Tensor:
    """(8 W,) uint8: ones where a packed row has inputs, zeros in its padding."""
    places = torch.arange(-(-inputs // 64) * 64) < inputs
    return (places.view(-1, 8).to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8)


# --- signs of outputs by integer thresholds --------------------------------------------------------------------------


@dataclass(frozen=True)
class Signs:
    """The smallest dot of each channel (O,) int16 whose output is above 0, at least 0, and not flushed to 0 from below.

    `plane`: 0 where one plane says all, 1 where zeros occur and have a plane, 2 where below `low` counts as +1.
    """

    positive: Tensor
    zero: Tensor
    low: Tensor
    plane: int


def signs_by_threshold(scale: Tensor, bias: Tensor, inputs: int, rule: str, gelu: bool = False) -> Signs:
    """Where the sign of `dot * scale + bias` changes, or of its GELU, as float32 arithmetic rounds it.

    sign(GELU(x)) is sign(x) but where GELU returns -0: far below 0 (x < -5.5), which torch's sign takes for 0 and
    the rule "plus" for +1. dot counts with the sign of the scale.
    """
    scale = scale.abs()
    positive, zero = (_first(scale, bias, inputs, above) for above in (lambda y: y > 0, lambda y: y >= 0))
    cut = gelu_cut() if gelu else -torch.inf
    low = _first(scale, bias, inputs, lambda y: y >= cut)
    flushed = bool((low > -inputs).any())
    if rule == "plus":
        return Signs(zero, zero, low, 2 if flushed else 0)
    return Signs(positive, zero, low, 1 if flushed or bool((zero < positive).any()) else 0)


def _first(scale: Tensor, bias: Tensor, inputs: int, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """The smallest dot in [-I, I] at which a monotone condition on the output holds; I + 1 where none does."""
    low, high = torch.full_like(scale, -inputs), torch.full_like(scale, inputs + 1)
    while bool((low < high).any()):
        middle = ((low + high) / 2).floor()
        met = holds(middle * scale + bias)
        low, high = torch.where(met, low, (middle + 1).minimum(high)), torch.where(met, middle, high)
    return low.to(torch.int16)


@functools.cache
def gelu_cut() -> float:
    """The smallest x whose GELU torch does not round to -0 on this machine."""
    low, high = torch.tensor(-8.0), torch.tensor(-4.0)
    while torch.nextafter(low, high) < high:
        middle = (low + high) / 2
        if bool((torch.nn.functional.gelu(middle.expand(64).contiguous()) == 0).all()):
            low = middle
        else:
            high = middle
    return float(high)
