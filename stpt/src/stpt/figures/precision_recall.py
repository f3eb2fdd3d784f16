"""Precision along recall: how many of the detections are right when so many of the actions are to be found."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray

from paperkit.results.report import COLORS, figure, style

NAMED = 6
"""Classes drawn in colours of their own; more are grey, so that the picture stays readable."""


def draw_precision_recall(curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], threshold: float) -> Figure:
    """One curve a class.

    Args:
        curves: class -> (recall, precision) along falling scores, of `stpt.method.detection_map.precision_recall`; the
            first six in colour.
        threshold: tIoU from which on a detection is right.
    """
    with style():
        drawn, axes = figure(width=6.4, height=4.4)
        for number, (label, (recall, precision)) in enumerate(curves.items()):
            named = number < NAMED
            look: dict[str, Any] = (
                {"color": COLORS[number], "label": label, "zorder": 3}
                if named
                else {"color": "#BBBBBB", "linewidth": 0.9}
            )
            axes.plot(recall, precision, **look)
        if len(curves) > NAMED:
            axes.plot([], [], color="#BBBBBB", linewidth=0.9, label=f"{len(curves) - NAMED} more classes")
        axes.set(
            xlabel="recall: share of the actions that are found",
            ylabel="precision: share of the detections that are right",
            xlim=(0, 1),
            ylim=(0, 1.02),
            title=f"Precision falls as more is to be found (right: tIoU >= {threshold:g})",
        )
        if curves:
            axes.legend(loc="upper right")
    return drawn
