"""Accuracy of fixed architectures while their supernet is trained: one random one a time would tell its luck."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style


def draw_probes(curves: Mapping[str, Sequence[float]], title: str) -> Figure:
    """A curve for each probe.

    Args:
        curves: name -> held-out top-1 in % after each epoch.
    """
    with style():
        drawn, panel = figure(width=7, height=4)
        for i, (name, values) in enumerate(curves.items()):
            panel.plot(range(1, len(values) + 1), values, ".-", color=COLORS[i % len(COLORS)], label=name)
        panel.set(xlabel="epoch", ylabel="held-out top-1, %", title=title)
        panel.legend()
    return drawn
