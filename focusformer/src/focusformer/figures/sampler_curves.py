"""Figure 5: how the sampler learned: reward of each anchor, entropy, feasible share, distance from the budget."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style

SMOOTH = 0.9  # of the moving averages that are drawn over the single updates


def smoothed(values: Sequence[float], keep: float = SMOOTH) -> list[float]:
    """Exponential moving average that starts at the first value."""
    averages: list[float] = []
    for value in values:
        averages.append(value if not averages else keep * averages[-1] + (1 - keep) * value)
    return averages


def draw_sampler_curves(log: Mapping[str, Sequence[float]], anchors: Sequence[str], title: str) -> Figure:
    """Four panels over the training steps.

    Args:
        log: columns of one entry an update: `step`, `anchor` (its number), `reward`, `entropy` (mean of a token as a
            share of the uniform choice's), `feasible` (share), `distance` (mean of |C / tau - 1|).
        anchors: their names, in order.
    """
    with style():
        drawn, panels = figure(2, 2, width=10, height=5.6, sharex=True)
        rewards, *rest = panels.flat
        for number, name in enumerate(anchors):
            own = [(s, r) for s, a, r in zip(log["step"], log["anchor"], log["reward"], strict=True) if a == number]
            if own:
                steps, values = zip(*own, strict=True)
                color = COLORS[number % len(COLORS)]
                rewards.plot(steps, values, ".", color=color, alpha=0.2, markersize=3)
                rewards.plot(steps, smoothed(values), color=color, label=name)
        rewards.set(ylabel="mean reward", title="Reward of each budget (moving average over single updates)")
        rewards.legend(fontsize=8)
        labels = {
            "entropy": ("share of uniform", "Entropy of a choice"),
            "feasible": ("share", "Samples that fit their budget"),
            "distance": ("|C / tau - 1|", "Distance from the budget"),
        }
        for panel, (column, (label, heading)) in zip(rest, labels.items(), strict=True):
            panel.plot(log["step"], log[column], ".", color=COLORS[0], alpha=0.2, markersize=3)
            panel.plot(log["step"], smoothed(log[column]), color=COLORS[0])
            panel.set(ylabel=label, title=heading)
            panel.set_ylim(bottom=0)
        for panel in panels[1]:
            panel.set_xlabel("training step")
        drawn.suptitle(title)
    return drawn
