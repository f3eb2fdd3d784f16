"""The paper's pictures of sensitivities and selections: by block, by operation, block by operation, concentration.

A record holds `maps` (task -> `block|operation` -> share in percent) and `selections` (task -> flags of the modules, a
row of six a block), as `spt.figures.statistics` counts them; several records are averaged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paperkit.results.report import COLORS, figure
from spt.method.candidates import OPERATIONS


def _maps(seeds: list[dict[str, Any]], task: str) -> np.ndarray:
    """[blocks, operations] share (%) of the entries among the marks, mean over seeds."""
    blocks = 1 + max(int(place.split("|")[0]) for place in seeds[0]["maps"][task])
    table = np.zeros((blocks, len(OPERATIONS)))
    for place in seeds[0]["maps"][task]:
        block, operation = place.split("|")
        table[int(block), OPERATIONS.index(operation)] = np.mean([seed["maps"][task][place] for seed in seeds])
    return table


def draw_concentration(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """How much of all sensitivity lies in how few entries (figure 5)."""
    drawn, axes = figure()
    for index, (task, points) in enumerate(curves.items()):
        share, held = zip(*points, strict=True)
        axes.plot(share, held, color=COLORS[index % len(COLORS)], label=task)
    axes.set_xscale("log")
    axes.set_xlabel("most sensitive entries (% of all)")
    axes.set_ylabel("of all sensitivity (%)")
    half = [next(at for at, part in points if part >= 50) for points in curves.values()]
    span = f"{min(half):.2g} %" if min(half) == max(half) else f"{min(half):.2g} to {max(half):.2g} %"
    axes.set_title(f"Half of the sensitivity lies in {span} of the entries")
    if len(curves) > 1:
        axes.legend()
    return drawn


def draw_by_block(seeds: list[dict[str, Any]]) -> Any:
    """Share of sensitive entries per block, a line for each task (figure 1)."""
    drawn, axes = figure()
    sizes = np.array([1, 1, 1, 1, 4, 4])  # entries of an operation's matrix, relative
    peaks = set()
    for index, task in enumerate(seeds[0]["maps"]):
        table = _maps(seeds, task)
        share = (table * sizes).sum(1) / sizes.sum()
        peaks.add(1 + int(share.argmax()))
        axes.plot(range(1, len(share) + 1), share, marker="o", color=COLORS[index % len(COLORS)], label=task)
    axes.set_xticks(range(1, len(table) + 1))
    axes.set_xlabel("block")
    axes.set_ylabel("sensitive entries (% of the block's)")
    blocks = ", ".join(map(str, sorted(peaks)))
    axes.set_title(f"Tasks are most sensitive in block{'s' if len(peaks) > 1 else ''} {blocks}")
    axes.legend()
    return drawn


def draw_by_operation(seeds: list[dict[str, Any]]) -> Any:
    """Share of sensitive entries per operation, a bar for each task (figure 2)."""
    drawn, axes = figure()
    tasks = list(seeds[0]["maps"])
    width = 0.8 / len(tasks)
    for index, task in enumerate(tasks):
        at = np.arange(len(OPERATIONS)) + (index - (len(tasks) - 1) / 2) * width
        axes.bar(at, _maps(seeds, task).mean(0), width, color=COLORS[index % len(COLORS)], label=task)
    axes.set_xticks(range(len(OPERATIONS)), OPERATIONS)
    axes.set_xlabel("operation")
    axes.set_ylabel("sensitive entries (% of the matrix's)")
    axes.set_title("Sensitive entries by operation and task")
    axes.legend()
    return drawn


def draw_selections(seeds: list[dict[str, Any]]) -> Any:
    """Block by operation: sensitive share in colour, modules of the first record as crosses (figure 4)."""
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
    which = ", first seed" if len(seeds) > 1 else ""
    drawn.suptitle(
        f"What is sensitive, and where the allocation puts a module (x{which})", x=0.02, ha="left", fontsize=11
    )
    return drawn
