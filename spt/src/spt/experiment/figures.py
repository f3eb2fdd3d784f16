"""Figures of the embedded experiment, drawn from a run's metrics.json: accuracy, sensitivities, budget, overlap."""

from pathlib import Path
from typing import Any

from paperkit.results.metrics import Metrics
from paperkit.results.report import COLORS, figure, mean_spread, save_figure, style
from spt.experiment.settings import SENSITIVE
from spt.figures.selections import draw_by_block, draw_by_operation, draw_concentration, draw_selections


def draw(metrics: Metrics, folder: Path) -> list[Path]:
    """All figures of a run of the embedded experiment; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = metrics.extra["seeds"]
    drawings = {
        "accuracy.png": lambda: draw_accuracy(metrics),
        "sensitivity_by_block.png": lambda: draw_by_block(seeds),
        "sensitivity_by_operation.png": lambda: draw_by_operation(seeds),
        "selections.png": lambda: draw_selections(seeds),
        "accuracy_by_share.png": lambda: draw_shares(metrics),
        "budget.png": lambda: draw_stairs(seeds, metrics),
        "concentration.png": lambda: draw_concentration({"": seeds[0]["concentration"]}),
        "overlap.png": lambda: draw_overlap(seeds),
    }
    paths = []
    with style():
        for name, drawing in drawings.items():
            if name == "selections.png" and not seeds[0]["selections"]:
                continue
            save_figure(drawing(), folder / name)
            paths.append(folder / name)
    return paths


def draw_accuracy(metrics: Metrics) -> Any:
    """Mean accuracy of every arm with its spread over seeds."""
    rows = [row for row in metrics.rows if row.metric == "accuracy, mean over tasks"]
    rows = sorted(rows, key=lambda row: row.mean)
    spent = {row.arm: row.mean for row in metrics.rows if row.metric.startswith("trained of")}
    drawn, axes = figure(width=7.2, height=0.32 * len(rows) + 1.2)
    colors = [COLORS[0] if r.arm == SENSITIVE else COLORS[1] if r.arm.startswith("SPT") else "#9A9A9A" for r in rows]
    axes.barh(
        range(len(rows)), [row.mean for row in rows], xerr=[row.spread or 0 for row in rows], color=colors, height=0.7
    )
    axes.set_yticks(range(len(rows)), [f"{row.arm} ({spent[row.arm]:,.0f})" for row in rows])
    axes.set_xlim(left=0.9 * min(row.mean - (row.spread or 0) for row in rows))
    axes.set_xlabel("accuracy (%), mean over tasks; bar: spread over seeds; in brackets: trained parameters")
    axes.set_title("Accuracy of every arm (blue: top gradients; orange: SPT's allocation)")
    axes.grid(axis="y", visible=False)
    return drawn


def draw_shares(metrics: Metrics) -> Any:
    """Accuracy against the share of tuned parameters, a marker for each arm (figure 3)."""
    spent = {row.arm: row.mean for row in metrics.rows if row.metric.startswith("trained of")}
    largest = max(spent.values())
    drawn, axes = figure(width=7.2, height=4.4)
    for index, row in enumerate(r for r in metrics.rows if r.metric == "accuracy, mean over tasks"):
        marker, color = "osD^vP*X"[index % 8], COLORS[index % len(COLORS)]
        share = 100 * spent[row.arm] / largest
        axes.errorbar(share, row.mean, row.spread or 0, marker=marker, color=color, linestyle="", label=row.arm)
    axes.set_xscale("symlog", linthresh=0.5)
    axes.set_xlabel("tuned parameters (% of the largest arm's)")
    axes.set_ylabel("accuracy (%), mean over tasks")
    axes.set_title("Accuracy and what was tuned for it (bar: spread over seeds)")
    axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def draw_stairs(seeds: list[dict[str, Any]], metrics: Metrics) -> Any:
    """total(tau): what a number of marks costs (figure 5)."""
    drawn, axes = figure()
    for index, seed in enumerate(seeds):
        tau, total = zip(*seed["stairs"], strict=True)
        axes.step(tau, total, where="post", color=COLORS[index % len(COLORS)], label=f"seed {seed['seed']}")
    axes.plot(tau, tau, color="#666666", linestyle=":", label="one parameter a mark")
    budget = next(int(r.metric.split()[2]) for r in metrics.rows if r.metric.startswith("trained of"))
    axes.axhline(budget, color="#666666", linewidth=1)
    axes.text(tau[-1], budget, " budget", va="bottom", ha="right", fontsize=9)
    axes.set_xlabel("tau, the number of marked entries")
    axes.set_ylabel("counted parameters")
    axes.set_title(f"What tau marks cost with their modules ({next(iter(seeds[0]['maps']))})")
    axes.legend()
    return drawn


def draw_overlap(seeds: list[dict[str, Any]]) -> Any:
    """How far the marks depend on task, images and head."""
    overlap = {
        pair: [s["overlap"][pair] for s in seeds if pair in s["overlap"]] for s in seeds for pair in s["overlap"]
    }
    groups = {
        "two halves of a task's images": [p for p in overlap if "halves" in p],
        "two random heads": [p for p in overlap if p.endswith(" 1 head")],
        "two times 4 random heads": [p for p in overlap if p.endswith(" 4 heads")],
        "two times 16 random heads": [p for p in overlap if p.endswith("16 heads")],
        "two tasks": [p for p in overlap if " and " in p],
    }
    groups = {name: [v for p in pairs for v in overlap[p]] for name, pairs in groups.items() if pairs}
    drawn, axes = figure(height=0.5 * len(groups) + 1.4)
    for row, values in enumerate(groups.values()):
        axes.plot(values, [row] * len(values), "o", color=COLORS[0], alpha=0.35)
        axes.plot([mean_spread(values).mean], [row], "|", color="black", markersize=18)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.set_xlim(0, 1)
    axes.set_xlabel("Jaccard overlap of the most sensitive entries (bar: mean)")
    images, head = groups.get("two halves of a task's images"), groups.get("two random heads")
    if images and head and mean_spread(head).mean <= mean_spread(images).mean:
        axes.set_title("A random head moves a selection at least as much as the images do")
    else:
        axes.set_title("How far images, random heads and tasks move a selection")
    return drawn
