"""Figures of a run folder, drawn from metrics.json."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from focusformer.experiment import settings as names
from focusformer.experiment.settings import ARMS
from focusformer.experiment.summary import ACCURACY, budget_name
from focusformer.figures.efficiency import draw_efficiency
from focusformer.figures.front import draw_fronts
from focusformer.figures.policy import draw_policy
from focusformer.figures.ranks import draw_ranks
from focusformer.figures.sampled_costs import draw_sampled_costs
from focusformer.figures.sampler_curves import draw_sampler_curves
from focusformer.method.architecture import SPACES
from paperkit.results.metrics import Metrics
from paperkit.results.report import COLORS, figure, save_figure, style

SHOWN = (names.U1, names.RANDOM, names.EVOLUTION, names.F1, names.F30)
"""Arms of the accuracy over the cost."""


def draw(metrics: Metrics, folder: Path) -> list[Path]:
    """Every figure of a run as PNG files in `folder`; all but the first two show the first seed."""
    extra, seed = metrics.extra, f"seed {metrics.seeds[0]}"
    budgets = [f"{budget_name(i)}: {macs / 1e3:,.0f} k" for i, macs in enumerate(extra["budgets"])]
    figures: dict[str, Callable[[], Figure]] = {
        "arms": lambda: draw_arms(metrics),
        "front": lambda: draw_fronts(
            mean_points(extra["points"]),
            "MACs of an image",
            "test accuracy, %",
            f"What each search chose, mean of {len(metrics.seeds)} seeds at each budget",
        ),
        "sampled_costs": lambda: draw_sampled_costs(extra["sampled"], extra["budgets"], "MACs"),
        "policy": lambda: draw_policy(
            dict(zip(budgets, extra["policy"], strict=True)),
            SPACES["digits"],
            f"What the trained sampler chooses at each budget, {seed}",
        ),
        "efficiency": lambda: draw_efficiency(
            {
                budget: {search: extra["traces"][search][i] for search in extra["traces"]}
                for i, budget in enumerate(budgets)
            },
            f"Held-out loss by evaluations: searches of the uniform supernet, and F1 on its own, {seed}",
        ),
        "sampler": lambda: draw_sampler_curves(extra["sampler"], budgets, f"The sampler over the training, {seed}"),
    }
    if extra["alone"]:
        pairs = extra["alone"]
        figures["ranks"] = lambda: draw_ranks(pairs["inherited"], pairs["alone"], pairs["cost"], "MACs")
    for name, make in figures.items():
        save_figure(make(), folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def mean_points(points: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Arm -> for each budget its cost and accuracy, means of the seeds."""
    found = {}
    for arm in SHOWN:
        by_budget = zip(*(seed[arm] for seed in points), strict=True)
        found[arm] = [
            (sum(cost for cost, _ in pairs) / len(pairs), sum(accuracy for _, accuracy in pairs) / len(pairs))
            for pairs in by_budget
        ]
    return found


def draw_arms(metrics: Metrics) -> Figure:
    """Mean test accuracy of each arm, each seed a point."""
    rows = [metrics.row(arm, ACCURACY) for arm in reversed(ARMS)]
    with style():
        drawn, panel = figure(width=7.5, height=3.4)
        for i, row in enumerate(rows):
            panel.plot(row.values, [i] * len(row.values), "o", color=COLORS[0], alpha=0.6)
            panel.plot([row.mean], [i], "|", color=COLORS[1], markersize=14, markeredgewidth=2)
        panel.set_yticks(range(len(rows)), [row.arm for row in rows])
        panel.set_xlabel("test accuracy, %, mean of the budgets")
        panel.set_title(f"Arms, {len(metrics.seeds)} seeds, bar: mean")
    return drawn
