"""Figures of a run folder, each drawn from metrics.json, the published tables or the cost formulas."""

from collections.abc import Callable
from pathlib import Path

import torch

from litv2.experiment.digit_frequencies import digit_network, split_digits
from litv2.experiment.settings import arm_name
from litv2.figures.of_a_network import HiLoInput, both_maps, save
from litv2.figures.published import published
from litv2.method.costs import hilo_macs, split_heads
from litv2.method.hilo import HiLo
from litv2.models.pyramid import Block
from paperkit.files.weights import load_strict, read_weights
from paperkit.results.metrics import Metrics
from paperkit.results.report import COLORS, figure, save_figure, style


def draw(metrics: Metrics, run: Path, folder: Path) -> list[Path]:
    """Every figure of an embedded run as PNG files in `folder`: of its numbers, and of the first seed's alpha .5."""
    figures: dict[str, Callable[[Metrics], object]] = {
        "two_markers": two_markers,
        "frequency_profile": frequency_profile,
        "single_layer": single_layer,
        "gap_over_grid": gap_over_grid,
        "window_over_size": window_over_size,
        "published_alpha": published_alpha,
        "published_throughput": published_throughput,
    }
    paths = []
    for name, make in figures.items():
        with style():
            save_figure(make(metrics), folder / f"{name}.png")  # type: ignore[arg-type]
        paths.append(folder / f"{name}.png")
    seed = metrics.seeds[0]
    weights = run / f"seed-{seed}" / f"digits {arm_name(0.5)}" / "weights.safetensors"
    return paths + draw_digit_network(weights, seed, folder)


def two_markers(metrics: Metrics) -> object:
    """Part B: bars of accuracy and of rightly ranked pairs, a dot a seed."""
    drawn, both = figure(1, 2, width=11, sharey=True)
    names = {"B two markers: accuracy": "accuracy", "B two markers: pairs ranked rightly (chance 50)": "pairs ranked"}
    for axes, (metric, title) in zip(both, names.items(), strict=True):
        rows = [row for row in metrics.rows if row.metric == metric]
        axes.bar(range(len(rows)), [row.mean for row in rows], color=COLORS[0], width=0.6, label="mean")
        for i, row in enumerate(rows):
            axes.plot([i] * len(row.values), row.values, "o", color=COLORS[1], label="one seed" if i == 0 else None)
        axes.axhline(50, color="grey", linestyle="--", linewidth=1, label="chance")
        if title == "accuracy":
            axes.axhline(75, color="grey", linestyle=":", linewidth=1, label="bound without a global path")
        arms = [row.arm.replace(" alpha", "\nalpha") for row in rows]
        axes.set(xticks=range(len(rows)), xticklabels=arms, title=f"two markers: {title}", ylim=(0, 105))
    both[0].set_ylabel("right on the test samples (%)")
    drawn.suptitle("Two distant markers: are they the same? Accuracy and ranking, by attention layer")
    drawn.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawn


def frequency_profile(metrics: Metrics) -> object:
    """Part C: radial profile of each branch of both blocks, a line a seed."""
    drawn, both = figure(1, 2, width=9, sharey=True)
    for block, axes in enumerate(both, 1):
        for i, branch in enumerate(("Hi-Fi", "Lo-Fi")):
            for seed, profiles in enumerate(metrics.extra["profiles"]):
                frequencies, values = profiles[f"block {block} {branch}"]
                label = f"{branch} (a line a seed)" if seed == 0 else None
                axes.plot(frequencies, [v - values[0] for v in values], "o-", color=COLORS[i], alpha=0.7, label=label)
        axes.set(xlabel="frequency (cycles per token)", title=f"block {block}")
        axes.legend()
    both[0].set_ylabel("mean log amplitude, lowest ring = 0")
    drawn.suptitle("Trained on digits: amplitude of each branch by frequency")
    return drawn


def single_layer(metrics: Metrics) -> object:
    """Part A at 14 x 14: images a second here, beside the paper's on its own processor."""
    drawn, (ours, theirs) = figure(1, 2, width=10, height=4.2)
    costs = [c for c in metrics.extra["costs"] if c["side"] == 14 and c["seconds"]]
    costs.sort(key=lambda c: -c["seconds"])
    rates = [c["batch"] / c["seconds"] for c in costs]
    ours.barh([c["name"] for c in costs], rates, color=[COLORS[1 if "HiLo" in c["name"] else 0] for c in costs])
    ours.set(xlabel="images/s, one thread", title="measured in this run (14x14, D 768, batch 8)")
    table = published("single_layer")
    rows = sorted(zip(table.column("mechanism"), table.column("cpu_images_per_s"), strict=True), key=lambda r: r[1])
    theirs.barh([n for n, _ in rows], [v for _, v in rows], color=[COLORS[1 if n == "HiLo" else 0] for n, _ in rows])
    theirs.set(xlabel="images/s, i9-10900X", title="published (batch 64)")
    drawn.suptitle("One attention layer on a CPU: HiLo beside its rivals")
    return drawn


def gap_over_grid(metrics: Metrics) -> object:
    """Part A: time over HiLo's at three grids."""
    drawn, axes = figure()
    costs = [c for c in metrics.extra["costs"] if c["over_hilo"]]
    for i, name in enumerate(dict.fromkeys(c["name"] for c in costs)):
        line = [(c["side"], c["over_hilo"]) for c in costs if c["name"] == name]
        axes.plot(*zip(*line, strict=True), "o-", color=COLORS[i % len(COLORS)], label=name)
    axes.set(xlabel="grid side (tokens)", ylabel="time / time of HiLo .9", yscale="log", xticks=[14, 28, 56])
    axes.set_title("Time of one layer over HiLo .9, by grid: above 1 HiLo is faster")
    axes.legend(ncols=2)
    return drawn


def window_over_size(metrics: Metrics) -> object:
    """Multiply-adds of the stage-3 layer of LITv2-S by image side for several windows (formulas of section 3.2)."""
    drawn, (parts, best) = figure(1, 2, width=10, sharey=True)
    sides = list(range(224, 1025, 32))
    lofi, hifi = split_heads(12, 2, 0.5)
    for i, window in enumerate((2, 4, 7, 14)):
        low = [hilo_macs(s // 16, s // 16, 384, 32, lofi, 0, window) / 1e9 for s in sides]
        high = [hilo_macs(s // 16, s // 16, 384, 32, 0, hifi, window) / 1e9 for s in sides]
        parts.plot(sides, high, color=COLORS[i], label=f"Hi-Fi, s {window}")
        parts.plot(sides, low, color=COLORS[i], linestyle="--", label=f"Lo-Fi, s {window}")
        best.plot(sides, [a + b for a, b in zip(low, high, strict=True)], color=COLORS[i], label=f"HiLo, s {window}")
    parts.set(
        xlabel="image side (pixels)", ylabel="multiply-adds of one layer (G)", yscale="log", title="the two groups"
    )
    best.set(xlabel="image side (pixels)", title="both groups together")
    for axes in (parts, best):
        axes.legend(ncols=2)
    drawn.suptitle("Multiply-adds by image side and window (formulas; D 384, 12 heads, alpha .5)")
    return drawn


def published_alpha(metrics: Metrics) -> object:
    """The paper's alpha curve."""
    drawn, axes = figure()
    table = published("alpha")
    axes.plot(table.column("alpha"), table.column("top1"), "o-", color=COLORS[0])
    axes.set(xlabel="alpha (share of Lo-Fi heads)", title="Published, LITv2-S: accuracy and cost by alpha")
    axes.set_ylabel("ImageNet top-1 (%)", color=COLORS[0])
    right = axes.twinx()
    right.plot(table.column("alpha"), table.column("GFLOPs"), "s--", color=COLORS[1])
    right.set_ylabel("GFLOPs", color=COLORS[1])
    right.grid(False)
    return drawn


def published_throughput(metrics: Metrics) -> object:
    """The paper's accuracy against throughput on four GPUs."""
    drawn, axes = figure(height=4.6)
    table = published("throughput")
    gpus = ("A100", "V100", "RTX6000", "RTX3090")
    for i, gpu in enumerate(gpus):
        rates, top1 = table.column(gpu), table.column("top1")
        axes.plot(rates[:-1], top1[:-1], "o", color=COLORS[i], alpha=0.5, label=gpu)
        axes.plot(rates[-1:], top1[-1:], "*", color=COLORS[i], markersize=14)
    axes.set(xlabel="images/s (batch 64, 224 px)", ylabel="ImageNet top-1 (%)")
    axes.set_title(f"Published: LITv2-S (stars) beside {len(table.rows) - 1} models on {len(gpus)} GPUs")
    axes.legend()
    return drawn


def draw_digit_network(weights: Path, seed: int, folder: Path) -> list[Path]:
    """Spectra and attention maps of part C's network with alpha .5, on its test digits."""
    model = digit_network(0.5)
    load_strict(model, read_weights(weights), str(weights))
    images = split_digits(seed).test_images
    block = model.eval().blocks[1]
    assert isinstance(block, Block) and isinstance(block.attn, HiLo)
    with torch.no_grad():
        x = block.norm1(model.blocks[0](model.stem(images)))
    seen = HiLoInput("second block, trained on digits", block.attn, x, images[0, 0])
    return save(both_maps(seen), folder)
