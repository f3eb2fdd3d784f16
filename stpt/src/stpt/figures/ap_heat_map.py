"""Average precision of each class at each tIoU threshold, as a heat map."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from paperkit.results.report import figure, style

MOST = 40
"""Classes that one picture holds: of more, the best and the worst half of them."""


def draw_ap_heat_map(ap: NDArray[Any], classes: Sequence[str], thresholds: Sequence[float]) -> Figure:
    """The best class on top.

    Args:
        ap: (T, C) in 0..1. classes: their names (C). thresholds: of tIoU (T).
    """
    order = np.argsort(-ap.mean(0), kind="stable")
    left_out = len(order) - MOST
    if left_out > 0:
        order = np.concatenate([order[: MOST // 2], order[-MOST // 2 :]])
    shown = 100 * ap[:, order].T
    with style():
        drawn, axes = figure(width=2.6 + 0.7 * len(thresholds), height=1.6 + 0.24 * len(order))
        axes.grid(False)
        picture = axes.imshow(shown, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for (row, column), value in np.ndenumerate(shown):
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color="k" if value > 60 else "w"
            )
        axes.set_xticks(range(len(thresholds)), [f"{threshold:g}" for threshold in thresholds])
        axes.set_yticks(range(len(order)), [classes[number] for number in order])
        more = f"\n({left_out} classes between are left out)" if left_out > 0 else ""
        axes.set(xlabel="tIoU threshold", title=f"Which classes are found how exactly{more}")
        drawn.colorbar(picture, ax=axes, label="average precision, %")
    return drawn
