"""Softmax rows and what binary rules make of them: one row, the thresholds of many, the long tail of all.

Shapes: L layers as a list, R rows, N tokens.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bivit.method.softmax_aware import BETA, optimal_binary
from paperkit.results.report import COLORS, figure, style

MOST_POINTS = 2000
LOWEST = 1e-6


def draw_row(row: Tensor, active: Mapping[str, Tensor], threshold: float) -> Figure:
    """One softmax row (N,) as bars, the threshold of SAB, and below it the active set (N,) of each rule."""
    count = len(row)
    with style():
        drawn, (top, below) = figure(
            2, 1, width=8, height=4.6, sharex=True, height_ratios=[3, 0.45 * len(active) + 0.3]
        )
        top.bar(range(count), row.tolist(), color=COLORS[0], label="softmax score")
        top.axhline(threshold, color=COLORS[1], linestyle="--", label=f"{BETA:g} x maximum (SAB)")
        top.set_ylabel("score")
        top.legend()
        for i, chosen in enumerate(active.values()):
            places = chosen.nonzero().flatten().tolist()
            below.plot(places, [i] * len(places), "s", color=COLORS[2 + i % 5], markersize=max(2, min(9, 240 / count)))
        below.set_yticks(range(len(active)), [f"{name}: {int(b.sum())}" for name, b in active.items()])
        below.set(xlabel="token attended to", ylim=(len(active) - 0.5, -0.5))
        drawn.suptitle("One attention row: which tokens each rule keeps (and how many)")
    return drawn


def draw_thresholds(layers: Sequence[Tensor]) -> Figure:
    """Optimal threshold (Algorithm 1) of softmax rows (R, N) against the maximum of the row, a colour a layer."""
    with style():
        drawn, panel = figure(width=6, height=4.4)
        tops, best = [], []
        for layer, rows in enumerate(layers):
            few = rows[:: max(1, len(rows) * len(layers) // MOST_POINTS)].double()
            tops.append(few.amax(-1))
            best.append(optimal_binary(few).threshold.flatten())
            color = COLORS[layer % len(COLORS)]
            panel.plot(tops[-1], best[-1], ".", color=color, markersize=3, alpha=0.4, label=f"layer {layer + 1}")
        x, y = torch.cat(tops), torch.cat(best)
        fitted, end = float((x * y).sum() / (x * x).sum()), float(x.max())
        for slope, name, line in ((BETA, "the paper's", "--"), (fitted, "fitted", "-")):
            panel.plot([0, end], [0, slope * end], line, color="black", label=f"{name} slope {slope:.2f}")
        panel.set(xlabel="maximum of the row", ylabel="optimal threshold T*")
        panel.set_title("The best threshold is nearly proportional to the maximum")
        panel.legend(markerscale=3, fontsize=8, ncols=1 + len(layers) // 6)
    return drawn


def draw_scores(layers: Sequence[Tensor], logits: Sequence[Tensor]) -> Figure:
    """Histogram of softmax scores (R, N) on a log axis; share of active entries in each layer by SAB and by bool."""
    edges = torch.logspace(math.log10(LOWEST), 0, 61)
    with style():
        drawn, (left, right) = figure(1, 2, width=10, height=3.8)
        for layer, rows in enumerate(layers):
            counts = torch.histogram(rows.float().clamp_min(LOWEST).flatten(), edges).hist / rows.numel()
            left.stairs(counts.tolist(), edges.tolist(), color=COLORS[layer % len(COLORS)], label=f"layer {layer + 1}")
        low = sum(int((rows < 0.05).sum()) for rows in layers) / sum(rows.numel() for rows in layers)
        left.set(xscale="log", xlabel=f"softmax score (first bar: {LOWEST:g} and less)", ylabel="share of the scores")
        left.set_title(f"{100 * low:.1f} % of the scores are below 0.05")
        left.legend(fontsize=8, ncols=1 + len(layers) // 6)
        places = range(1, len(layers) + 1)
        sab = [100 * float((rows >= BETA * rows.amax(-1, keepdim=True)).double().mean()) for rows in layers]
        bools = [100 * float((values > 0).double().mean()) for values in logits]
        right.plot(places, sab, "o-", label=f"SAB, {BETA:g} x maximum")
        right.plot(places, bools, "s-", label="bool (BiBERT), logit > 0")
        right.set(xlabel="layer", ylabel="active entries, %", ylim=(0, None))
        right.set_xticks(list(places))
        right.set_title("Share of the tokens that stay on")
        right.legend()
        drawn.suptitle("Softmax scores are long-tailed")
    return drawn
