"""Accuracy against what a network costs: operations as the paper counts them, bytes on disk."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from paperkit.results.report import COLORS, figure, style

MARKS = "os^DvP*X<>"


def draw_tradeoff(
    networks: Mapping[str, tuple[float, float, float, float]], costs: tuple[str, str], accuracy: str
) -> Figure:
    """Name -> (operations, bytes, accuracy, its spread over seeds), each a point in two panels with log axes.

    Args:
        costs: labels of operations and bytes. accuracy: label of the third.
    """
    with style():
        drawn, panels = figure(1, 2, width=11, height=4.6, sharey=True)
        for place, (panel, label) in enumerate(zip(panels, costs, strict=True)):
            for i, (name, numbers) in enumerate(networks.items()):
                color, mark = COLORS[i % len(COLORS)], MARKS[i // len(COLORS) % len(MARKS)]
                panel.errorbar(numbers[place], numbers[2], numbers[3], fmt=mark, color=color, label=name)
            panel.set(xscale="log", xlabel=label)
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter(NullFormatter())
        panels[0].set_ylabel(accuracy)
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
        drawn.suptitle("What accuracy costs (bars: spread over seeds)")
    return drawn
