"""Figures of a run folder, drawn from metrics.json and the first seed's hashes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from ecoformer.experiment import settings as names
from ecoformer.experiment.patch_tokens import hash_of, patch_tokens, tokens_of
from ecoformer.experiment.run import seed_folder
from ecoformer.experiment.settings import ExperimentConfig
from ecoformer.figures.codes import draw_attention, draw_distances, draw_fits
from ecoformer.figures.energy_and_accuracy import draw_energy_and_accuracy
from ecoformer.figures.three_attentions import draw_three_attentions
from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import COLORS, figure, save_figure, style


def draw(metrics: Metrics, run: Path, folder: Path, config: ExperimentConfig) -> list[Path]:
    """Every figure of a run as PNG files in `folder`."""
    figures: dict[str, Callable[[], Figure]] = {
        "similarity": lambda: draw_similarity(metrics),
        "distances": lambda: draw_distances(metrics.extra["distances"]),
        "fits": lambda: draw_fits({n: metrics.extra["fits"][n] for n in (names.KSH_OFFICIAL, names.KSH_LARGE)}),
        "attention_maps": lambda: draw_one_image(run, config),
        "accuracies": lambda: draw_accuracies(metrics),
        "energy": draw_energy_and_accuracy,
        "three_attentions": draw_three_attentions,
    }
    if metrics.extra["sweep"]:
        figures["bits_and_supports"] = lambda: draw_sweep(metrics.extra["sweep"])
    for name, make in figures.items():
        save_figure(make(), folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def draw_similarity(metrics: Metrics) -> Figure:
    """Part A: label error and pairs ranked rightly, each seed a point."""
    with style():
        drawn, (left, right) = figure(1, 2, width=11, height=3.8, sharey=True)
        for panel, metric, label in (
            (left, "A label error", "label error on unseen images (lower is better)"),
            (right, "A pairs ranked rightly", "similar before dissimilar pairs, %"),
        ):
            _dots(panel, [row for row in metrics.rows if row.metric == metric], label)
        drawn.suptitle(f"Part A: do 16-bit codes keep similarity? {len(metrics.seeds)} seeds, bar: mean")
    return drawn


def draw_accuracies(metrics: Metrics) -> Figure:
    """Parts B and C: accuracy of each arm, each seed a point."""
    parts = {
        "B digits: accuracy": ("test accuracy, %", "Part B: digits, end to end"),
        "C majority: accuracy": ("test accuracy, %", "Part C: cluster majority"),
    }
    found = {metric: [row for row in metrics.rows if row.metric == metric] for metric in parts}
    found = {metric: rows for metric, rows in found.items() if rows}
    with style():
        tall = max(map(len, found.values()))
        drawn, panels = figure(1, len(found), width=5.5 * len(found), height=1.4 + 0.32 * tall, squeeze=False)
        for panel, (metric, rows) in zip(panels[0], found.items(), strict=True):
            label, title = parts[metric]
            _dots(panel, rows, label)
            panel.set_title(f"{title}; {len(rows[0].values)} seed(s), bar: mean")
    return drawn


def _dots(panel: Any, rows: list[Row], label: str) -> None:
    for i, row in enumerate(reversed(rows)):
        panel.plot(row.values, [i] * len(row.values), "o", color=COLORS[0], alpha=0.6)
        panel.plot([row.mean], [i], "|", color=COLORS[1], markersize=16, markeredgewidth=2)
    panel.set_yticks(range(len(rows)), [row.arm for row in reversed(rows)])
    panel.set_xlabel(label)


def draw_sweep(sweep: list[dict[str, Any]]) -> Figure:
    """Part A's first seed: ranked pairs and label error against the number of bits and of supports."""
    with style():
        drawn, panels = figure(2, 2, width=9, height=6)
        for column, (axis, other, fixed) in enumerate((("bits", "supports", 25), ("supports", "bits", 16))):
            for i, codes in enumerate((names.KSH_RANDOM, names.KSH_LARGE)):
                chosen = sorted(
                    (e[axis], e["auc"], e["error"]) for e in sweep if e["codes"] == codes and e[other] == fixed
                )
                xs, aucs, errors = zip(*chosen, strict=True)
                for row, values in enumerate((aucs, errors)):
                    panels[row][column].plot(xs, values, "o-", color=COLORS[i], label=codes)
                    panels[row][column].set_xticks(xs)
            panels[0][column].set_title(f"{axis}, with {fixed} {other}")
            panels[1][column].set_xlabel(axis)
        panels[0][0].set_ylabel("pairs ranked rightly, %")
        panels[1][0].set_ylabel("label error")
        panels[0][0].legend()
        drawn.suptitle("Length of the code and number of supports, first seed, unseen images")
    return drawn


@torch.no_grad()
def draw_one_image(run: Path, config: ExperimentConfig) -> Figure:
    """What a patch of a digit attends to: softmax of its similarities, and h_i . h_j + c before and after the fit."""
    seed = config.first_seed
    scan = torch.from_numpy(load_digits().images[0]).float() / 16
    u = tokens_of(scan[None, None], seed)
    query, maps = int(scan.flatten().argmax()), {}
    maps["softmax of 8 u$_i$·u$_j$"] = (8 * u[0, 0, query] @ u[0, 0].mT).softmax(-1)
    for title, codes in (("h$_i$·h$_j$ + c, random A", names.KSH_RANDOM), ("after the fit, lr 1", names.KSH_LARGE)):
        layer = hash_of(seed_folder(run, seed) / "codes", codes)
        _, measured = patch_tokens(seed, config)
        h = layer(torch.cat([u, measured]))[0, 0]
        maps[title] = h[query] @ h.mT + layer.nbits + 1
    return draw_attention(scan, maps, query, "One patch of one digit: what it attends to, before the division")
