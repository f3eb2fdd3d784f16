"""The C++ kernels (`kernels.cpp`): which instruction set runs, and the order in which it wants weights.

A tier is one compilation: "vnni" (AVX-512 with VNNI), "avx512bw", "avxvnni" (256 bits with VNNI), "avx2", "portable",
and "torch" where there is no compiler: layers then compute with `torch._int_mm`, as they do on CUDA. All give the same
integers, whatever the codes are: none adds pairs in 16 bits, where u8 x s8 products saturate. The environment variable
`PTQ4DM_TIER` forces one.

Shapes: O outputs, K 32-bit words of a row, L lanes of a vector.
"""

import ctypes
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.native import cpu_features, library

SOURCES = [Path(__file__).with_name("kernels.cpp")]
FLAGS = ("-fno-math-errno", "-fno-trapping-math")
AVX2 = ("avx2", "fma")
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
TIERS: dict[str, dict[str, str]] = {
    "vnni": {**{name: f"-m{name}" for name in AVX512}, "avx512_vnni": "-mavx512vnni"},
    "avx512bw": {name: f"-m{name}" for name in AVX512},
    "avxvnni": {**{name: f"-m{name}" for name in AVX2}, "avx_vnni": "-mavxvnni"},
    "avx2": {name: f"-m{name}" for name in AVX2},
    "portable": {},
    "torch": {},
}
"""Tiers, fastest first: features of the processor that each needs, and the compiler's flags for them."""


@dataclass(frozen=True)
class Kernels:
    """The compiled functions of one tier, and the lanes of its vectors."""

    tier: str
    lanes: int
    functions: ctypes.CDLL

    def run(self, steps: int, count: int, threads: int) -> None:
        """Runs an array of steps (its address)."""
        self.functions.ptq4dm_run(steps, count, threads)


@functools.cache
def available() -> tuple[str, ...]:
    """Tiers that this processor can run, fastest first; without a compiler "torch" alone."""
    found = tuple(name for name, needs in TIERS.items() if needs.keys() <= cpu_features())
    return found if _compiled(found[0]) is not None else ("torch",)


def tier() -> str:
    """The tier that runs; without a compiler "torch", whatever is forced.

    Raises:
        UserError: `PTQ4DM_TIER` names one that does not exist or that the processor cannot run.
    """
    forced = os.environ.get("PTQ4DM_TIER")
    if not forced:
        return available()[0]
    if forced not in TIERS:
        raise UserError(f"PTQ4DM_TIER={forced} does not exist; known: {', '.join(TIERS)}")
    if missing := TIERS[forced].keys() - cpu_features():
        raise UserError(f"PTQ4DM_TIER={forced}: this processor lacks {', '.join(sorted(missing))}")
    return forced if forced == "torch" or _compiled(forced) is not None else "torch"


def kernels() -> Kernels | None:
    """The functions of the tier that runs; None where layers compute in plain PyTorch."""
    return _compiled(tier())


@functools.cache
def _compiled(name: str) -> Kernels | None:
    if name == "torch":
        return None
    flags = tuple(dict.fromkeys(TIERS[name].values()))
    if (loaded := library(f"ptq4dm-{name}", SOURCES, flags=(*FLAGS, *flags))) is None:
        return None
    loaded.ptq4dm_run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    loaded.ptq4dm_run.restype = None
    return Kernels(name, loaded.ptq4dm_lanes(), loaded)


def blocks(vectors: int) -> Iterator[int]:
    """Vectors of outputs that a tile takes at once, as `vectors_of` in the kernels says."""
    while vectors > 0:
        count = {4: 2, 2: 2, 1: 1}.get(vectors, 3)
        yield count
        vectors -= count


def ordered(weight: Tensor, lanes: int) -> Tensor:
    """Weights (O, K) of 32-bit words as [block of vectors][word][lane]; outputs are filled up with zeros."""
    vectors = -(-len(weight) // lanes)
    filled = torch.nn.functional.pad(weight, (0, 0, 0, vectors * lanes - len(weight)))
    pieces, start = [], 0
    for count in blocks(vectors):
        pieces.append(filled[start : start + count * lanes].T.reshape(-1))
        start += count * lanes
    return torch.cat(pieces)


def per_output(values: Tensor, lanes: int) -> Tensor:
    """One number per output, (O,), filled up to whole vectors."""
    return torch.nn.functional.pad(values, (0, -len(values) % lanes)).contiguous()
