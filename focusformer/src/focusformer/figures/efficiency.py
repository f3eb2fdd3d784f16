"""Figure 4: the lowest held-out loss that a search has found, by the evaluations that it has spent."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style


def draw_efficiency(traces: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Figure:
    """A panel for each budget.

    Args:
        traces: budget -> search -> its lowest loss after each evaluation; a search of one evaluation is a point.
    """
    with style():
        drawn, panels = figure(1, len(traces), width=3.1 * len(traces) + 0.6, height=3.6, squeeze=False)
        for panel, (budget, searches) in zip(panels[0], traces.items(), strict=True):
            for i, (name, trace) in enumerate(searches.items()):
                if len(trace) == 1:
                    panel.plot([1], trace, "*", markersize=12, color=COLORS[i], label=name)
                else:
                    panel.plot(range(1, len(trace) + 1), trace, drawstyle="steps-post", color=COLORS[i], label=name)
            panel.set(xscale="log", xlabel="evaluations", title=budget)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("")
        panels[0][0].set_ylabel("lowest held-out loss so far")
        panels[0][0].legend()
        drawn.suptitle(title)
    return drawn
