"""Average precision against multiply-accumulates, a point for each network (the paper's headline plot)."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style


class Point(NamedTuple):
    """One network.

    Attributes:
        name: as it stands beside the point.
        macs: multiply-accumulates of one clip, in the unit of the panel.
        precisions: average mAP in %; one value, or one a seed.
        group: points of one group share a colour and an entry of the legend.
    """

    name: str
    macs: float
    precisions: Sequence[float]
    group: str


def draw_map_against_macs(panels: Mapping[str, tuple[str, Sequence[Point]]]) -> Figure:
    """A panel for each set of networks; better is up and to the left.

    Args:
        panels: title -> label of the horizontal axis, and the points.
    """
    with style():
        drawn, row = figure(1, len(panels), width=0.8 + 5.0 * len(panels), height=4.2, squeeze=False)
        for panel, (title, (label, points)) in zip(row[0], panels.items(), strict=True):
            groups = list(dict.fromkeys(point.group for point in points))
            middle = (min(point.macs for point in points) + max(point.macs for point in points)) / 2
            for point in points:
                place = groups.index(point.group)
                color, height = COLORS[place % len(COLORS)], mean(point.precisions)
                panel.plot(point.macs, height, "os^Dv"[place % 5], color=color, markersize=7)
                panel.plot([point.macs] * len(point.precisions), point.precisions, ".", color=color, alpha=0.4)
                side, shift = ("right", -7) if point.macs > middle else ("left", 7)
                panel.annotate(
                    point.name, (point.macs, height), (shift, 5), textcoords="offset points", fontsize=8, ha=side
                )
            for place, group in enumerate(groups):
                panel.plot([], [], "os^Dv"[place % 5], color=COLORS[place % len(COLORS)], label=group)
            panel.set(xlabel=label, ylabel="average mAP, %", title=title)
            panel.margins(0.25, 0.2)
            panel.legend(loc="best")
    return drawn
