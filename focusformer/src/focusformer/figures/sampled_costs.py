"""Figure 2: what the architectures cost that training sampled."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style

BINS = 40


def draw_sampled_costs(sampled: Mapping[str, Sequence[float]], anchors: Sequence[float], cost: str) -> Figure:
    """A histogram for each way of sampling; uniform choices make a bell.

    Args:
        sampled: way of sampling -> cost of the architecture of each step. anchors: the budgets, drawn as lines.
    """
    every = [value for values in sampled.values() for value in values]
    with style():
        drawn, panels = figure(len(sampled), 1, width=7, height=1.4 + 1.5 * len(sampled), sharex=True, squeeze=False)
        for i, (panel, (name, values)) in enumerate(zip(panels[:, 0], sampled.items(), strict=True)):
            panel.hist(values, bins=BINS, range=(min(every), max(every)), color=COLORS[i % len(COLORS)], alpha=0.7)
            for anchor in anchors:
                panel.axvline(anchor, color="gray", linestyle="--", linewidth=1)
            panel.set(ylabel="steps", title=f"{name}: {len(values)} steps")
        panels[-1, 0].set_xlabel(f"{cost} of the sampled architecture (dashed: budgets)")
    return drawn
