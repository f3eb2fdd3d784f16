"""The clock: single layers, LITv2-S against its plain form and against networks that a user can install.

Each part measures, prints its table and returns its rows; `draw` plots them.
"""

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from litv2.bench.memory import layer_peaks, network_peak
from litv2.bench.networks import RIVALS, litv2_s, rival
from litv2.bench.plain import plain_logits
from litv2.deployment.fused import fuse, outputs_differ
from litv2.experiment.single_layer import RACE, layer_costs
from paperkit.errors import UserError
from paperkit.results.measure import Ratio, compare
from paperkit.results.report import COLORS, figure, save_figure, style, table

Rows = list[dict[str, Any]]


def layers(quick: bool, threads: int | None = None) -> Rows:
    """Layers at four grids, D 384, batch 1; "peak" is MiB of a process of its own, None but on Linux."""
    torch.set_num_threads(threads or 1)
    pairs = {14: 3, 28: 3} if quick else {14: 9, 28: 7, 56: 5, 64: 5}
    peaks = layer_peaks(RACE, list(pairs), 384, 12)
    costs = [cost for side, n in pairs.items() for cost in layer_costs(side, 1, 384, pairs=n, names=RACE)]
    rows = [{**asdict(cost), "peak": peaks.get((cost.name, cost.side))} for cost in costs]
    lines = [
        (f"{r['side']}x{r['side']}", r["name"], r["over_hilo"], *r["spread"], 1e3 * r["seconds"], r["macs"] / 1e6,
         r["kept"] / 2**20, "" if r["peak"] is None else r["peak"])
        for r in rows
    ]  # fmt: skip
    columns = ("tokens", "layer", "time / HiLo .9", "q25", "q75", "ms", "M multiply-adds", "MiB kept", "MiB at peak")
    table(lines, columns, f"One layer, D 384, 12 heads, batch 1, threads {threads or 1}, default float32")
    return rows


def forms(quick: bool, threads: int | None = None) -> Rows:
    """The fused network against its plain form at the same precision: ratios and how far the outputs differ."""
    torch.set_num_threads(threads or 1)
    model = litv2_s()
    fast = fuse(model)
    rows = []
    for size, pairs in ((224, 3),) if quick else ((224, 11), (512, 5), (1024, 3)):
        image = torch.randn(1, 3, size, size)
        steps = {"plain": partial(plain_logits, model, image), "not fused": partial(model, image)}
        with torch.inference_mode():
            ratios = compare(partial(fast, image), steps, pairs=pairs, warmup=1, name="fused")
            expected = plain_logits(model, image)
            differ = ((fast(image) - expected).abs().max() / expected.abs().max()).item()
        differ = max(differ, outputs_differ(model, fast, image))
        rows += [{"size": size, "form": ratio.name, **_times(ratio), "differs": differ} for ratio in ratios]
    columns = ("px", "form", "time / fused", "q25", "q75", "ms", "outputs differ by")
    title = f"LITv2-S, fused against its plain form, batch 1, threads {threads or 1}, default float32"
    table([list(row.values()) for row in rows], columns, title)
    return rows


def rivals(quick: bool, threads: int | None = None) -> Rows:
    """LITv2-S (fused) against timm's networks by size, thread count and matmul precision; batch 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    few, counts = threads or 1, [threads] if threads else [1, cores]
    settings = [(224, few, "highest", 3 if quick else 9)]
    if not quick:
        settings += [(224, few, "medium", 5), *((224, n, p, 5) for n in counts[1:] for p in ("highest", "medium"))]
        settings += [(512, n, "highest", 3) for n in counts]
    rows = [row for setting in settings for row in _rivals_at(*setting, raced(quick))]
    columns = ("px", "threads", "matmul", "network", "time / LITv2-S", "q25", "q75", "ms")
    title = "LITv2-S (fused) against timm's networks, batch 1: above 1, LITv2-S is faster"
    table([list(row.values()) for row in rows], columns, title)
    return rows


def _rivals_at(size: int, threads: int, precision: str, pairs: int, names: tuple[str, ...]) -> Rows:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    try:
        fast, image = fuse(litv2_s()), torch.randn(1, 3, size, size)
        networks = {name: rival(name, size) for name in names}
        with torch.inference_mode():
            steps: dict[str, Callable[[], object]] = {n: partial(net, image) for n, net in networks.items()}
            ratios = compare(partial(fast, image), steps, pairs=pairs, warmup=1, name="LITv2-S")
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(1)
    setting = {"size": size, "threads": threads, "precision": precision}
    return [{**setting, "network": ratio.name, **_times(ratio)} for ratio in ratios]


def memory(quick: bool, threads: int | None = None) -> Rows:
    """MiB that one forward pass on one thread adds to a process of its own, by network and size."""
    sizes, names = (224,) if quick else (224, 512), ("fused", "plain", *raced(quick))
    rows = [{"size": size, "network": name, "MiB": network_peak(name, size)} for size in sizes for name in names]
    title = "Peak memory of one forward pass, a process each"
    table([list(row.values()) for row in rows], ("px", "network", "MiB above the weights"), title)
    return rows


def raced(quick: bool) -> tuple[str, ...]:
    """The rivals that are raced."""
    return ("ConvNeXt-T",) if quick else tuple(RIVALS)


PARTS: dict[str, Callable[[bool, int | None], Rows]] = {
    "layers": layers,
    "forms": forms,
    "rivals": rivals,
    "memory": memory,
}


def draw(found: dict[str, Rows], path: Path) -> None:
    """Layers by grid, forms by size, rivals at 224 px; every bar is a time over LITv2's or HiLo's."""
    layers, forms, rivals = (found.get(part, []) for part in ("layers", "forms", "rivals"))
    with style():
        drawn, (left, middle, right) = figure(1, 3, width=13, height=4.2)
        for i, name in enumerate(dict.fromkeys(c["name"] for c in layers)):
            line = [(c["side"], c["over_hilo"]) for c in layers if c["name"] == name]
            left.plot(*zip(*line, strict=True), "o-", color=COLORS[i % len(COLORS)], label=name)
        left.set(xlabel="grid side (tokens)", ylabel="time / HiLo .9", yscale="log", title="one layer")
        left.legend(fontsize=7)
        plain = [r for r in forms if r["form"] == "plain"]
        middle.bar([str(r["size"]) for r in plain], [r["over_litv2"] for r in plain], color=COLORS[0])
        middle.axhline(1, color="grey", linewidth=1)
        middle.set(xlabel="image side (px)", ylabel="time / fused", title="LITv2-S: plain form")
        fewest = min((r["threads"] for r in rivals), default=1)
        at_224 = [r for r in rivals if r["size"] == 224 and r["precision"] == "highest"]
        chosen = [r for r in at_224 if r["threads"] == fewest][1:]
        right.barh([r["network"] for r in chosen], [r["over_litv2"] for r in chosen], color=COLORS[2])
        right.axvline(1, color="grey", linewidth=1)
        right.set(xlabel="time / LITv2-S", title=f"timm, 224 px, threads {fewest}")
        drawn.suptitle("Time over HiLo's or LITv2-S's: above 1 they are faster (float32, batch 1)")
        save_figure(drawn, path)


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
