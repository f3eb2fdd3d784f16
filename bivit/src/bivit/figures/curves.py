"""Validation accuracy against the epoch, of one-step and staged training."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style


def draw_curves(curves: Mapping[str, Sequence[float]], border: float | None, title: str) -> Figure:
    """Accuracy in percent after each epoch.

    Args:
        curves: name -> values. border: epoch after which staged training goes on to its second stage, marked.
    """
    with style():
        drawn, panel = figure(width=7, height=4)
        for i, (name, values) in enumerate(curves.items()):
            panel.plot(range(1, len(values) + 1), values, ".-", color=COLORS[i % len(COLORS)], label=name)
        if border is not None:
            panel.axvline(border, linestyle="--", color="gray", label="end of a first stage")
        panel.set(xlabel="epoch", ylabel="validation accuracy, %")
        panel.set_title(title)
        panel.legend(fontsize=8)
    return drawn
