"""Figure 6: do inherited weights rank sub-networks as training alone does?"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from scipy.stats import kendalltau

from paperkit.results.report import COLORS, figure, style


def kendall_tau(inherited: Sequence[float], alone: Sequence[float]) -> float:
    """Rank correlation, with ties (tau-b); nan if one side does not vary."""
    return float(kendalltau(inherited, alone).statistic)


def draw_ranks(inherited: Sequence[float], alone: Sequence[float], costs: Sequence[float], cost: str) -> Figure:
    """A point for each sub-network, coloured by its cost; accuracies in %."""
    with style():
        drawn, panel = figure(width=5.6, height=4.6)
        shown = panel.scatter(inherited, alone, c=list(costs), cmap="viridis", edgecolors=COLORS[-1], linewidths=0.5)
        drawn.colorbar(shown, ax=panel, label=cost)
        tau = kendall_tau(inherited, alone)
        panel.set(xlabel="accuracy with inherited weights, %", ylabel="accuracy trained alone, %")
        panel.set_title(f"{len(inherited)} sub-networks: Kendall's tau {tau:.2f}")
    return drawn
