"""The specification's figures, drawn from a run's metrics.json: sensitivity by layer and kind, budgets, selections,
accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paperkit.results.metrics import Metrics
from paperkit.results.report import COLORS, figure, mean_spread, save_figure, style
from spt.experiment.settings import SENSITIVE
from spt.method.candidates import OPERATIONS


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


def _maps(seeds: list[dict[str, Any]], task: str) -> np.ndarray:
    """[blocks, operations] share (%) of the entries among the marks, mean over seeds."""
    blocks = 1 + max(int(place.split("|")[0]) for place in seeds[0]["maps"][task])
    table = np.zeros((blocks, len(OPERATIONS)))
    for place in seeds[0]["maps"][task]:
        block, operation = place.split("|")
        table[int(block), OPERATIONS.index(operation)] = np.mean([seed["maps"][task][place] for seed in seeds])
    return table


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
    axes.set_title("Where a small budget is spent matters (blue: top gradients; orange: SPT's allocation)")
    axes.grid(axis="y", visible=False)
    return drawn


def draw_shares(metrics: Metrics) -> Any:
    """Accuracy against the share of tuned parameters, a marker an arm (figure 3)."""
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


def draw_concentration(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """How much of all sensitivity lies in how few entries (figure 5)."""
    drawn, axes = figure()
    for index, (task, points) in enumerate(curves.items()):
        share, held = zip(*points, strict=True)
        axes.plot(share, held, color=COLORS[index % len(COLORS)], label=task)
    axes.set_xscale("log")
    axes.set_xlabel("most sensitive entries (% of all)")
    axes.set_ylabel("of all sensitivity (%)")
    axes.set_title("A few entries hold most of the sensitivity")
    if len(curves) > 1:
        axes.legend()
    return drawn


def draw_by_block(seeds: list[dict[str, Any]]) -> Any:
    """Share of sensitive entries per block, a line a task (figure 1 of the specification)."""
    drawn, axes = figure()
    sizes = np.array([1, 1, 1, 1, 4, 4])  # entries of an operation's matrix, relative
    for index, task in enumerate(seeds[0]["maps"]):
        table = _maps(seeds, task)
        share = (table * sizes).sum(1) / sizes.sum()
        axes.plot(range(1, len(share) + 1), share, marker="o", color=COLORS[index % len(COLORS)], label=task)
    axes.set_xticks(range(1, len(table) + 1))
    axes.set_xlabel("block")
    axes.set_ylabel("sensitive entries (% of the block's)")
    axes.set_title("Tasks are sensitive at different depths")
    axes.legend()
    return drawn


def draw_by_operation(seeds: list[dict[str, Any]]) -> Any:
    """Share of sensitive entries per operation, bars a task (figure 2)."""
    drawn, axes = figure()
    tasks = list(seeds[0]["maps"])
    width = 0.8 / len(tasks)
    for index, task in enumerate(tasks):
        at = np.arange(len(OPERATIONS)) + (index - (len(tasks) - 1) / 2) * width
        axes.bar(at, _maps(seeds, task).mean(0), width, color=COLORS[index % len(COLORS)], label=task)
    axes.set_xticks(range(len(OPERATIONS)), OPERATIONS)
    axes.set_xlabel("operation")
    axes.set_ylabel("sensitive entries (% of the matrix's)")
    axes.set_title("Which operations are sensitive, by task")
    axes.legend()
    return drawn


def draw_selections(seeds: list[dict[str, Any]]) -> Any:
    """Block by operation: sensitive share in colour, LoRA modules of SPT-LoRA as crosses (figure 4)."""
    tasks = list(seeds[0]["selections"])
    drawn, grid = figure(1, len(tasks), width=2.6 * len(tasks) + 0.6, height=3.4, squeeze=False)
    top = max(_maps(seeds, task).max() for task in tasks)
    for axes, task in zip(grid[0], tasks, strict=True):
        image = axes.imshow(_maps(seeds, task), cmap="viridis", vmin=0, vmax=top, aspect="auto", origin="lower")
        for block, flags in enumerate(seeds[0]["selections"][task]):
            for operation, flag in enumerate(flags):
                if flag:
                    axes.text(operation, block, "x", color="white", ha="center", va="center", weight="bold")
        axes.set_xticks(range(len(OPERATIONS)), OPERATIONS, rotation=45)
        axes.set_yticks(range(len(seeds[0]["selections"][task])), range(1, len(seeds[0]["selections"][task]) + 1))
        axes.set_xlabel("operation")
        axes.set_title(task)
        axes.grid(visible=False)
    grid[0][0].set_ylabel("block")
    drawn.colorbar(image, ax=grid[0].tolist(), label="sensitive entries (%)")
    drawn.suptitle(
        "What is sensitive, and where SPT-LoRA puts a module (x, first seed)", x=0.02, ha="left", fontsize=11
    )
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
    axes.set_title(f"tau is not the budget: modules make stairs ({next(iter(seeds[0]['maps']))})")
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
    axes.set_title("A random head moves a selection as much as the images do")
    return drawn
