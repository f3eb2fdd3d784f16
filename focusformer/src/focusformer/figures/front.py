"""Figure 1: accuracy against cost of the architectures that each search chose."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from focusformer.method.search import pareto
from paperkit.results.report import COLORS, figure, style

Point = tuple[float, float]
"""Cost and accuracy."""


def draw_fronts(points: Mapping[str, Sequence[Point]], cost: str, accuracy: str, title: str) -> Figure:
    """A curve for each search over its front; what lies below the front is drawn pale.

    Args:
        points: search -> its architectures. cost, accuracy: labels of the axes, with the counter's name.
    """
    with style():
        drawn, panel = figure(width=7, height=4.4)
        for i, (name, found) in enumerate(points.items()):
            color = COLORS[i % len(COLORS)]
            panel.plot(*zip(*found, strict=True), "o", color=color, alpha=0.3)
            front = [found[j] for j in pareto(*zip(*found, strict=True))]
            panel.plot(*zip(*front, strict=True), "o-", color=color, label=name)
        panel.set(xlabel=cost, ylabel=accuracy, title=title)
        panel.legend()
    return drawn
