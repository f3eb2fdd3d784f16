"""The clock: attentions, hash fits, memory, and PVTv2-B0 from image to logits.

Each part measures, prints its table with the aims it met or missed, and returns its rows; `draw` plots them.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ecoformer.bench import forms
from ecoformer.bench.memory import attention_peak
from ecoformer.method.attention import fit_hashes
from ecoformer.method.fused_attention import fuse
from ecoformer.method.hash_fit import FitOptions, fit_projection
from ecoformer.method.kernel_hash import bandwidth, kernel_values, normalise, squared_distances
from ecoformer.method.similarity import pair_labels
from ecoformer.models.architectures import build
from paperkit.results.environment import cpu
from paperkit.results.measure import Ratio, compare
from paperkit.results.report import COLORS, figure, save_figure, style, table

Rows = list[dict[str, Any]]
Setting = tuple[int, int, int]
"""Heads, width, threads."""
PAIRS = {49: 7, 196: 7, 784: 5, 3136: 5, 12544: 3}
"""Tokens -> timed pairs of each form."""
LAYER = (8, (196, 784, 3136))
"""Heads and numbers of tokens of a whole layer, whose tensors leave the caches."""
TARGETS = {(forms.SDPA, 784): 2.0, (forms.SDPA, 3136): 10.0, (forms.SDPA, 12544): 40.0,
           (forms.RELEASED, 196): 2.0, (forms.RELEASED, 784): 10.0, (forms.RELEASED, 3136): 10.0,
           (forms.RELEASED, 12544): 10.0, (forms.ELU, 784): 1.0, (forms.ELU, 3136): 1.0, (forms.ELU, 12544): 1.0,
           **{(forms.PERFORMER, tokens): 1.0 for tokens in (196, 784, 3136, 12544)}}  # fmt: skip
"""What was aimed at, at width 64: time of a form over EcoFormer's."""
CROSSING = (196.0, 784.0)
"""Where EcoFormer was expected to become faster than SDPA."""
FIT_TARGETS = {784: 5.0}
"""Tokens -> time of the dense loop over ours."""
STRAIGHT = 0.99
"""r^2 of memory by tokens from which on it counts as linear."""


def attention(quick: bool, threads: int | None = None) -> Rows:
    """Every attention over EcoFormer's time: one head, widths 32 and 64; eight heads, width 64; one and two threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [threads] if threads else [1] if quick or cores < 2 else [1, 2]
    heads, layer = LAYER
    parts = [(1, 64, (196, 784))] if quick else [(1, 32, tuple(PAIRS)), (1, 64, tuple(PAIRS)), (heads, 64, layer)]
    rows: Rows = []
    for count in counts:
        for many, width, sizes in parts:
            here = (many, width, count)
            for tokens in sizes:
                rows += _attention_at(here, tokens, 3 if quick else PAIRS[tokens])
            _print_attention([r for r in rows if _setting(r) == here])
    return rows


def _setting(row: dict[str, Any]) -> Setting:
    return row["heads"], row["width"], row["threads"]


def _print_attention(rows: Rows) -> None:
    heads, width, threads = _setting(rows[0])
    lines = [(*(r[k] for k in ("tokens", "form", "over_eco", "q25", "q75", "ms")), _verdict(r)) for r in rows]
    columns = ("tokens", "form", "time / EcoFormer", "q25", "q75", "ms", "aim")
    title = f"Heads {heads}, width {width}, threads {threads}; batch 1, float32 where nothing else stands"
    table(lines, columns, f"{title}, from unnormalised qk and v to the output, hashing included")
    for at in crossovers(rows).values():
        low, high = CROSSING
        said = "MISSED: earlier" if at[0] < low else _met(at[1] <= high)
        print(f"crossover with SDPA: {crossing(at)} (aim: {low:g} to {high:g}; {said})")
    shares = [f"{r['over_eco']:.1%} at {r['tokens']}" for r in rows if r["form"] == forms.READING]
    print(f"one reading of qk and v takes of EcoFormer's time, by tokens: {', '.join(shares)}", flush=True)


def _attention_at(here: Setting, tokens: int, pairs: int) -> Rows:
    heads, width, threads = here
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    try:
        with torch.inference_mode():
            eco, rivals = forms.attention_steps(tokens, width, heads, half=here[:2] == (1, 64))
            ratios = compare(eco, rivals, pairs=pairs, warmup=2, min_seconds=0.01, name=forms.ECO)
    finally:
        torch.set_num_threads(1)
    setting = {"heads": heads, "width": width, "threads": threads, "tokens": tokens}
    aims = {ratio.name: TARGETS.get((ratio.name, tokens)) if width == 64 else None for ratio in ratios}
    return [{**setting, "form": r.name, **_times(r), **_aim(r.median, aims[r.name])} for r in ratios]


def _aim(value: float, aim: float | None) -> dict[str, Any]:
    return {"aim": aim, "met": None if aim is None else value >= aim}


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def _verdict(row: dict[str, Any]) -> str:
    return "" if row["aim"] is None else f"{row['aim']:g}: {_met(row['met'])}"


def missed(found: dict[str, Rows]) -> tuple[int, list[str]]:
    """How many aims there are in all parts, and the missed ones in words."""
    judged = [(part, row) for part, rows in found.items() for row in rows if row.get("aim") is not None]
    words = []
    for part, row in judged:
        if not row["met"]:
            where = ", ".join(f"{k} {row[k]}" for k in ("form", "heads", "width", "threads", "tokens") if k in row)
            words.append(f"{part}: {where}: {row['over_eco']:.3g} of {row['aim']:g}")
    return len(judged), words


def crossovers(rows: Rows) -> dict[Setting, tuple[float, float]]:
    """Setting -> between which numbers of tokens EcoFormer becomes faster than SDPA.

    Twice the same number where sizes lie on both sides (log-log interpolation); (0, smallest) or (largest, infinity).
    """
    found: dict[Setting, tuple[float, float]] = {}
    for setting in dict.fromkeys(map(_setting, rows)):
        line = [(r["tokens"], r["over_eco"]) for r in rows if r["form"] == forms.SDPA and _setting(r) == setting]
        found[setting] = (0.0, line[0][0]) if line[0][1] >= 1 else (line[-1][0], math.inf)
        for (n, ratio), (more, larger) in pairwise(line):
            if ratio < 1 <= larger:
                at = n * (more / n) ** (math.log(1 / ratio) / math.log(larger / ratio))
                found[setting] = (at, at)
    return found


def crossing(between: tuple[float, float]) -> str:
    """A crossover in words."""
    low, high = between
    if low == high:
        return f"about {low:.0f} tokens"
    return f"below {high:.0f} tokens" if low == 0 else f"above {low:.0f} tokens"


def fit(quick: bool, threads: int | None = None) -> Rows:
    """The hash fit with sparse residual and closed gradient against the dense loop of the released code; the same A."""
    torch.set_num_threads(threads or 1)
    rows: Rows = []
    for tokens, iterations, pairs in ((196, 10, 1),) if quick else ((784, 100, 3), (3136, 5, 1)):
        qk, _, (anchor, mvec, start, _) = forms.attention_inputs(tokens, 64)
        u = normalise(qk)
        kernel = kernel_values(squared_distances(u, anchor), bandwidth(u, anchor)) - mvec
        labels, options = pair_labels(u, 10), FitOptions(iterations=iterations)
        sparse = partial(fit_projection, kernel, labels, start, options)
        dense = partial(forms.dense_fit, kernel, labels, start, options)
        differ = (sparse()[0] - dense()).abs().max().item()
        (_, ratio) = compare(sparse, {"dense loop": dense}, pairs=pairs, warmup=1, min_seconds=0, name="sparse")
        aim = None if quick else FIT_TARGETS.get(tokens)
        here = {"tokens": tokens, "iterations": iterations}
        rows.append({**here, **_times(ratio), **_aim(ratio.median, aim), "A differs by": differ})
    columns = ("tokens", "iterations", "dense / ours", "q25", "q75", "dense, ms", "A differs by", "aim")
    keys = ("tokens", "iterations", "over_eco", "q25", "q75", "ms", "A differs by")
    lines = [(*(row[k] for k in keys), _verdict(row)) for row in rows]
    table(lines, columns, f"Fit of 16 bits over 25 supports, k 10, one sample and head, threads {threads or 1}")
    return rows


def memory(quick: bool, threads: int | None = None) -> Rows:
    """MiB that one forward pass adds to its inputs, by tokens, and the line through EcoFormer's."""
    sizes = (784, 3136) if quick else (3136, 6272, 12544, 25088, 50176)
    rows: Rows = [
        {"tokens": tokens, "form": name, "MiB": attention_peak(name, tokens, 64)}
        for tokens in sizes
        for name in ((forms.ECO, forms.SDPA) if tokens > 6272 else (forms.ECO, forms.SDPA, forms.EXPLICIT))
    ]
    table([list(row.values()) for row in rows], ("tokens", "form", "MiB"), "Peak memory above the inputs, width 64")
    slope, start, explained = line_through(
        [(float(r["tokens"]), float(r["MiB"])) for r in rows if r["form"] == forms.ECO]
    )
    line = f"{1024 * slope:.2f} KiB a token {start:+.1f} MiB (inputs: 0.5 KiB a token), r^2 {explained:.4f}"
    print(f"EcoFormer: {line} (aim: linear, from {STRAIGHT:g} on; {_met(explained >= STRAIGHT)})")
    return rows


def line_through(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """(slope, start, r^2) of the least-squares line."""
    x, y = torch.tensor(points, dtype=torch.float64).T
    slope = (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()
    start = (y.mean() - slope * x.mean()).item()
    left = (y - slope * x - start).square().sum() / (y - y.mean()).square().sum().clamp_min(1e-30)
    return slope, start, 1 - left.item()


def networks(quick: bool, threads: int | None = None) -> Rows:
    """PVTv2-B0 from image to logits: EcoFormer (fused) against the unmodified SRA form and full attention; batch 1."""
    torch.set_num_threads(threads or 1)
    rows: Rows = []
    for size, pairs in ((224, 3),) if quick else ((224, 7), (512, 3)):
        image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        eco = build("pvt_v2_b0_ecoformer").eval()
        fit_hashes(eco, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)))
        fast = fuse(eco)
        rivals = {form: build(f"pvt_v2_b0_{form}").eval() for form in ("sra", "msa", "msa_share_qk")}
        with torch.inference_mode():
            differ = ((fast(image) - eco(image)).abs().max() / eco(image).abs().max()).item()
            steps: dict[str, Callable[[], object]] = {name: partial(net, image) for name, net in rivals.items()}
            steps["ecoformer, not fused"] = partial(eco, image)
            ratios = compare(partial(fast, image), steps, pairs=pairs, warmup=2, name="ecoformer")
        rows += [{"size": size, "form": r.name, **_times(r), "differs": differ} for r in ratios]
    columns = ("px", "form", "time / EcoFormer", "q25", "q75", "ms", "fused differs by")
    table(
        [list(row.values()) for row in rows], columns, f"PVTv2-B0, batch 1, threads {threads or 1}, SDPA in all softmax"
    )
    return rows


PARTS: dict[str, Callable[[bool, int | None], Rows]] = {
    "attention": attention,
    "fit": fit,
    "memory": memory,
    "networks": networks,
}


def draw(found: dict[str, Rows], path: Path) -> None:
    """A panel for each part that was measured: attention of one head and of a layer, fits, memory, networks.

    In all but memory, what is above 1 is slower than EcoFormer.
    """
    panels: list[Callable[[Any], None]] = []
    rows = found.get("attention", [])
    for heads in dict.fromkeys(r["heads"] for r in rows):
        here = [r for r in rows if (r["heads"], r["width"]) == (heads, 64)]
        fewest = min(r["threads"] for r in here)
        panels.append(partial(_draw_attention, [r for r in here if r["threads"] == fewest]))
    for part, drawing in (("fit", _draw_fit), ("memory", _draw_memory), ("networks", _draw_networks)):
        if found.get(part):
            panels.append(partial(drawing, found[part]))
    with style():
        drawn, axes = figure(1, len(panels), width=1 + 4.8 * len(panels), height=6, squeeze=False)
        for ax, panel in zip(axes[0], panels, strict=True):
            panel(ax)
        processor = cpu()
        flags = [flag for flag in ("avx512f", "avx2", "asimd") if flag in processor["flags"]][:1]
        drawn.suptitle(
            "Above 1, EcoFormer is faster\n(float32, batch 1, medians of interleaved pairs)\n"
            + ", ".join([processor["model"], *flags])
        )
        save_figure(drawn, path)


def _draw_attention(rows: Rows, ax: Any) -> None:
    (heads, width, threads), at = next(iter(crossovers(rows).items()))
    for i, name in enumerate(dict.fromkeys(r["form"] for r in rows if "again" not in r["form"])):
        line = [(r["tokens"], r["over_eco"]) for r in rows if r["form"] == name]
        dashed = "--" if name == forms.READING or i >= len(COLORS) else "-"
        ax.plot(*zip(*line, strict=True), "o" + dashed, color=COLORS[i % len(COLORS)], label=name)
    ax.axhline(1, color="grey", linewidth=1)
    if at[0] == at[1]:
        ax.axvline(at[0], color="grey", linewidth=1, linestyle=":")
    ax.set(xlabel="tokens", ylabel="time / EcoFormer", xscale="log", yscale="log")
    ax.set_title(f"Attention, heads {heads}, width {width}, threads {threads}\nfaster than SDPA from {crossing(at)} on")
    _ticks(ax, rows)
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)


def _draw_fit(rows: Rows, ax: Any) -> None:
    names = [f"{r['tokens']} tokens,\n{r['iterations']} iterations" for r in rows]
    ax.bar(names, [r["over_eco"] for r in rows], color=COLORS[1], width=0.5)
    ax.axhline(1, color="grey", linewidth=1)
    ax.set(ylabel="time of the dense loop / ours", yscale="log", title="Fit of the hash")


def _draw_memory(rows: Rows, ax: Any) -> None:
    for i, name in enumerate(dict.fromkeys(r["form"] for r in rows)):
        line = [(r["tokens"], r["MiB"]) for r in rows if r["form"] == name]
        ax.plot(*zip(*line, strict=True), "o-", color=COLORS[i], label=name)
    ax.set(xlabel="tokens", ylabel="MiB above the inputs", xscale="log", yscale="log", title="Peak memory")
    _ticks(ax, rows)
    ax.legend(fontsize=8)


def _draw_networks(rows: Rows, ax: Any) -> None:
    bars = [r for r in rows if "again" not in r["form"]]
    names = [f"{r['form'].replace(', ', chr(10))}\n{r['size']} px" for r in bars]
    ax.barh(names, [r["over_eco"] for r in bars], color=COLORS[2])
    ax.axvline(1, color="grey", linewidth=1)
    ax.set(xlabel="time / EcoFormer (fused)", title="PVTv2-B0, image to logits")


def _ticks(ax: Any, rows: Rows) -> None:
    sizes = sorted({r["tokens"] for r in rows})
    ax.set_xticks(sizes, sizes, rotation=30)
    ax.minorticks_off()


def _times(ratio: Ratio) -> dict[str, float]:
    return {"over_eco": ratio.median, "q25": ratio.q25, "q75": ratio.q75, "ms": 1e3 * ratio.seconds}
