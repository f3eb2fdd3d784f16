"""One attention layer on the clock: the paper's single-layer benchmark (section 4.4), and part A of the experiment.

Shapes: B batch, N = side * side tokens, D channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from litv2.method import mechanisms as m
from litv2.method.hilo import HiLo, cheapest_window
from paperkit.results.flops import count
from paperkit.results.measure import compare, saved_bytes

Builder = Callable[[int, int, int], nn.Module]
"""(D, heads, side) -> layer."""

HILO, HILO_AUTO, MSA, MSA_EXPLICIT, SRA, WINDOW = (
    "HiLo .9",
    "HiLo .9, s auto",
    "MSA (SDPA)",
    "MSA (explicit)",
    "SRA 2",
    "window 7",
)

# Settings of the paper's benchmark.
LAYERS: dict[str, Builder] = {
    HILO: lambda dim, heads, side: HiLo(dim, heads, 2, 0.9),
    "HiLo .5": lambda dim, heads, side: HiLo(dim, heads, 2, 0.5),
    HILO_AUTO: lambda dim, heads, side: HiLo(dim, heads, cheapest_window(HiLo(dim, heads, 2, 0.9), side, side), 0.9),
    MSA: lambda dim, heads, side: m.MSA(dim, heads),
    MSA_EXPLICIT: lambda dim, heads, side: m.MSA(dim, heads, explicit=True),
    SRA: lambda dim, heads, side: m.SpatialReductionAttention(dim, heads, 2),
    WINDOW: lambda dim, heads, side: m.WindowAttention(dim, heads, 7),
    "XCA": lambda dim, heads, side: m.CrossCovarianceAttention(dim, heads),
    "shifted window 7": lambda dim, heads, side: m.WindowAttention(dim, heads, 7, 3),
    "cross window 7": lambda dim, heads, side: m.CrossWindowAttention(dim, heads, 7),
    "Linformer 128": lambda dim, heads, side: m.Linformer(dim, heads, side * side, 128),
    "VAN": lambda dim, heads, side: m.LargeKernelAttention(dim),
    "HorNet": lambda dim, heads, side: m.GatedConvolution(dim, 4, 1 / 3),
}
PART_A = (HILO, "HiLo .5", MSA, MSA_EXPLICIT, SRA, WINDOW, "XCA")
RACE = (HILO, HILO_AUTO, *PART_A[1:])  # the bench's: the same weights with the window of fewest multiply-adds, too


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer at one size.

    Attributes:
        macs: multiply-adds of one image, counted from what runs (SRA's convolution too).
        params: parameters.
        kept: bytes that autograd keeps for the backward pass of the whole batch.
        seconds: median time of a forward pass of the batch, without gradients; None if it was not taken.
        over_hilo: median ratio of that time to HiLo .9's, taken in pairs.
        spread: quartiles of that ratio.
    """

    name: str
    side: int
    batch: int
    dim: int
    macs: int
    params: int
    kept: int
    seconds: float | None = None
    over_hilo: float | None = None
    spread: tuple[float, float] | None = None


def layer_costs(
    side: int, batch: int, dim: int, heads: int = 12, pairs: int = 7, names: Sequence[str] = PART_A
) -> list[LayerCost]:
    """Every named layer at one size; HiLo .9 comes first and is the baseline of the ratios. `pairs` 0: no clock."""
    x = torch.randn(batch, side, side, dim, generator=torch.Generator().manual_seed(0))
    layers = {name: LAYERS[name](dim, heads, side).eval() for name in names}
    costs = []
    for name, layer in layers.items():
        counts = count(layer, (1, side, side, dim))
        costs.append(
            LayerCost(name, side, batch, dim, counts.macs, counts.params, saved_bytes(partial(layer, x), layer))
        )
    if not pairs:
        return costs
    with torch.inference_mode():
        steps = {name: (lambda layer=layer: layer(x)) for name, layer in layers.items()}
        baseline = steps.pop(HILO)
        again, *ratios = compare(baseline, steps, pairs=pairs, warmup=1)
    clocks = {HILO: (again.baseline_seconds, 1.0, (again.q25, again.q75))}
    clocks.update({r.name: (r.seconds, r.median, (r.q25, r.q75)) for r in ratios})
    timed = []
    for cost in costs:
        seconds, over_hilo, spread = clocks[cost.name]
        timed.append(replace(cost, seconds=seconds, over_hilo=over_hilo, spread=spread))
    return timed


def part_a(pairs: int = 7) -> list[dict[str, Any]]:
    """The experiment's three sizes: D 768 at 14 x 14 (batch 8), D 384 at 28 x 28 and 56 x 56 (batch 1). One thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sizes = ((14, 8, 768), (28, 1, 384), (56, 1, 384))
        return [asdict(cost) for side, batch, dim in sizes for cost in layer_costs(side, batch, dim, pairs=pairs)]
    finally:
        torch.set_num_threads(threads)
