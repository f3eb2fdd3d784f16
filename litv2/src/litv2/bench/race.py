"""The clock: single layers, LITv2-S against its plain form and against networks that a user can install."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from litv2.bench.memory import layer_peaks
from litv2.bench.networks import RIVALS, litv2_s, rival
from litv2.bench.plain import plain_logits
from litv2.deployment.fused import fuse, outputs_differ
from litv2.experiment.single_layer import RACE, layer_costs
from paperkit.errors import UserError
from paperkit.results.measure import Ratio, compare


def single_layers(quick: bool = False) -> list[dict[str, Any]]:
    """Layers at four grids, D 384, batch 1, one thread; "peak" is MiB of a process of its own, None but on Linux."""
    torch.set_num_threads(1)
    pairs = {14: 3, 28: 3} if quick else {14: 9, 28: 7, 56: 5, 64: 5}
    peaks = layer_peaks(RACE, list(pairs), 384, 12)
    costs = [cost for side, n in pairs.items() for cost in layer_costs(side, 1, 384, pairs=n, names=RACE)]
    return [{**asdict(cost), "peak": peaks.get((cost.name, cost.side))} for cost in costs]


def forms(quick: bool = False) -> list[dict[str, Any]]:
    """The fused network against its plain form at the same precision: ratios and how far the outputs differ."""
    torch.set_num_threads(1)
    model = litv2_s()
    fast = fuse(model)
    rows = []
    for size, pairs in ((224, 3),) if quick else ((224, 11), (512, 5), (1024, 3)):
        image = torch.randn(1, 3, size, size)
        with torch.inference_mode():
            steps: dict[str, Callable[[], object]] = {
                "plain": lambda image=image: plain_logits(model, image),  # type: ignore[misc]
                "not fused": lambda image=image: model(image),  # type: ignore[misc]
            }
            ratios = compare(lambda image=image: fast(image), steps, pairs=pairs, warmup=1, name="fused")  # type: ignore[misc]
            expected = plain_logits(model, image)
            differ = ((fast(image) - expected).abs().max() / expected.abs().max()).item()
        for ratio in ratios:
            rows.append(
                {
                    "size": size,
                    "form": ratio.name,
                    **_times(ratio),
                    "differs": max(differ, outputs_differ(model, fast, image)),
                }
            )
    return rows


def rivals(
    size: int, threads: int, precision: str, pairs: int, names: tuple[str, ...] = tuple(RIVALS)
) -> list[dict[str, Any]]:
    """LITv2-S (fused) against timm's networks at one size, thread count and matmul precision; batch 1."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    try:
        fast, image = fuse(litv2_s()), torch.randn(1, 3, size, size)
        networks = {name: rival(name, size) for name in names}
        with torch.inference_mode():
            steps: dict[str, Callable[[], object]] = {n: partial(net, image) for n, net in networks.items()}
            ratios = compare(lambda: fast(image), steps, pairs=pairs, warmup=1, name="LITv2-S")
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(1)
    setting = {"size": size, "threads": threads, "precision": precision}
    return [{**setting, "network": ratio.name, **_times(ratio)} for ratio in ratios]


def _times(ratio: Ratio) -> dict[str, float]:
    return {"over_litv2": ratio.median, "q25": ratio.q25, "q75": ratio.q75, "ms": 1e3 * ratio.seconds}


def throughput(batch: int = 64, warmup: int = 50, timed: int = 30, size: int = 224, device: str = "cuda") -> float:
    """Images a second by the paper's protocol: batch 64 at 224 px, 50 forwards to warm up, 30 timed, synchronised.

    Raises:
        UserError: CUDA asked for where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device; --device cpu times this machine's processor")
    from torch.utils.benchmark import timer

    model, image = fuse(litv2_s()).to(device), torch.randn(batch, 3, size, size, device=device)
    with torch.inference_mode():
        for _ in range(warmup):
            model(image)
        start = timer()
        for _ in range(timed):
            model(image)
        return batch * timed / (timer() - start)
