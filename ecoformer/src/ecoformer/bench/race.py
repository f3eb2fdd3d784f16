"""The clock: attentions, hash fits, memory, and PVTv2-B0 from image to logits.

Each part measures, prints its table and returns its rows; `draw` plots them.
"""

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
from paperkit.results.measure import Ratio, compare
from paperkit.results.report import COLORS, figure, save_figure, style, table

Rows = list[dict[str, Any]]
PAIRS = {49: 9, 196: 9, 784: 7, 3136: 5, 12544: 3}
"""Tokens -> timed pairs of each form."""
TARGETS = {(forms.SDPA, 784): 2.0, (forms.SDPA, 3136): 10.0, (forms.SDPA, 12544): 40.0,
           (forms.RELEASED, 196): 2.0, (forms.RELEASED, 784): 10.0, (forms.RELEASED, 3136): 10.0,
           (forms.RELEASED, 12544): 10.0, (forms.ELU, 784): 1.0, (forms.ELU, 3136): 1.0, (forms.ELU, 12544): 1.0,
           **{(forms.PERFORMER, tokens): 1.0 for tokens in (196, 784, 3136, 12544)}}  # fmt: skip
"""What was aimed at, at width 64: time of a form over EcoFormer's."""


def attention(quick: bool, threads: int | None = None) -> Rows:
    """Every attention at head widths 32 and 64, one and two threads, over EcoFormer's time; batch and head 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [threads] if threads else [1] if quick or cores < 2 else [1, 2]
    rows: Rows = []
    for width in (64,) if quick else (32, 64):
        for count in counts:
            for tokens, pairs in {196: 3, 784: 3}.items() if quick else PAIRS.items():
                rows += _attention_at(width, count, tokens, pairs)
            _print_attention([r for r in rows if (r["width"], r["threads"]) == (width, count)])
    return rows


def _print_attention(rows: Rows) -> None:
    lines = [
        (*(r[k] for k in ("width", "threads", "tokens", "form", "over_eco", "q25", "q75", "ms")), _aim(r)) for r in rows
    ]
    columns = ("C", "threads", "tokens", "form", "time / EcoFormer", "q25", "q75", "ms", "aim")
    table(lines, columns, "One head, batch 1, float32, from unnormalised qk and v to the output, hashing included")
    for (width, count), at in crossovers(rows).items():
        print(f"crossover with SDPA, width {width}, threads {count}: {at}")


def _attention_at(width: int, threads: int, tokens: int, pairs: int) -> Rows:
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    try:
        with torch.inference_mode():
            eco, rivals = forms.attention_steps(tokens, width)
            ratios = compare(eco, rivals, pairs=pairs, warmup=2, name=forms.ECO)
    finally:
        torch.set_num_threads(1)
    here = {"width": width, "threads": threads, "tokens": tokens}
    return [{**here, "form": ratio.name, **_times(ratio)} for ratio in ratios]


def _aim(row: dict[str, Any]) -> str:
    aim = TARGETS.get((row["form"], row["tokens"])) if row["width"] == 64 else None
    return "" if aim is None else f"{aim:g}: {'met' if row['over_eco'] >= aim else 'MISSED'}"


def crossovers(rows: Rows) -> dict[tuple[int, int], str]:
    """(width, threads) -> where EcoFormer becomes faster than SDPA, by log-log interpolation between sizes."""
    found: dict[tuple[int, int], str] = {}
    for row in rows:
        found.setdefault((row["width"], row["threads"]), "")
    for width, threads in found:
        line = [
            (r["tokens"], r["over_eco"])
            for r in rows
            if r["form"] == forms.SDPA and (r["width"], r["threads"]) == (width, threads)
        ]
        text = f"below {line[0][0]} tokens" if line[0][1] >= 1 else f"above {line[-1][0]} tokens"
        for (n, ratio), (more, larger) in pairwise(line):
            if ratio < 1 <= larger:
                share = torch.tensor([1 / ratio, larger / ratio]).log()
                text = f"about {n * (more / n) ** (share[0] / share[1]).item():.0f} tokens"
        found[width, threads] = text
    return found


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
        rows.append({"tokens": tokens, "iterations": iterations, **_times(ratio), "A differs by": differ})
    columns = ("tokens", "iterations", "dense / ours", "q25", "q75", "dense, ms", "A differs by")
    table([list(row.values()) for row in rows], columns, "Fit of 16 bits over 25 supports, k 10, one sample and head")
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
    print(f"EcoFormer: {1024 * slope:.2f} KiB a token + {start:.1f} MiB, r^2 {explained:.4f} (inputs: 0.5 KiB a token)")
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
    """Times by tokens with the crossover, memory by tokens, networks; what is above 1 is slower than EcoFormer."""
    rows, memories, whole = (found.get(part, []) for part in ("attention", "memory", "networks"))
    width, threads = (64, min((r["threads"] for r in rows), default=1))
    with style():
        drawn, (left, middle, right) = figure(1, 3, width=14, height=5)
        here = [r for r in rows if (r["width"], r["threads"]) == (width, threads)]
        for i, name in enumerate(dict.fromkeys(r["form"] for r in here if "again" not in r["form"])):
            line = [(r["tokens"], r["over_eco"]) for r in here if r["form"] == name]
            dashed = "--" if name == forms.READING else "-"
            left.plot(*zip(*line, strict=True), "o" + dashed, color=COLORS[i % len(COLORS)], label=name)
        left.axhline(1, color="grey", linewidth=1)
        left.set(xlabel="tokens", ylabel="time / EcoFormer", xscale="log", yscale="log")
        crossed = crossovers(here).get((width, threads), "")
        left.set_title(f"Attention, width {width}, threads {threads}; SDPA meets it\n{crossed}")
        left.set_xticks(list(PAIRS), map(str, PAIRS))
        left.minorticks_off()
        if here:
            left.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.18), ncols=2)
        for i, name in enumerate(dict.fromkeys(r["form"] for r in memories)):
            line = [(r["tokens"], r["MiB"]) for r in memories if r["form"] == name]
            middle.plot(*zip(*line, strict=True), "o-", color=COLORS[i], label=name)
        middle.set(xlabel="tokens", ylabel="MiB above the inputs", xscale="log", yscale="log", title="Peak memory")
        middle.set_xticks(sorted({r["tokens"] for r in memories}), sorted({r["tokens"] for r in memories}), rotation=30)
        middle.minorticks_off()
        if memories:
            middle.legend(fontsize=8)
        bars = [r for r in whole if "again" not in r["form"]]
        right.barh([f"{r['form']}, {r['size']} px" for r in bars], [r["over_eco"] for r in bars], color=COLORS[2])
        right.axvline(1, color="grey", linewidth=1)
        right.set(xlabel="time / EcoFormer (fused)", title="PVTv2-B0, image to logits")
        drawn.suptitle("Above 1, EcoFormer is faster (float32, batch 1, medians of interleaved pairs)")
        save_figure(drawn, path)


def _times(ratio: Ratio) -> dict[str, float]:
    return {"over_eco": ratio.median, "q25": ratio.q25, "q75": ratio.q75, "ms": 1e3 * ratio.seconds}
