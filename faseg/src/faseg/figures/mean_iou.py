"""Mean IoU of each decoder output, and of networks that keep fewer windows against their cost (figure 5).

Shapes: none; lists over seeds.
"""

from collections.abc import Mapping, Sequence
from statistics import mean

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style


def draw_mean_iou(
    outputs: Mapping[str, Sequence[Sequence[float]]], omegas: Mapping[int, tuple[float, Sequence[float]]], unit: str
) -> Figure:
    """Left: output by output. Right: cost and mean IoU for each omega.

    Args:
        outputs: variant -> for each seed the mean IoU in % of every output, from that of the raw queries on.
        omegas: omega -> multiply-adds of one picture in `unit`, and the mean IoU in % of each seed.
        unit: of the multiply-adds.
    """
    with style():
        drawn, (left, right) = figure(1, 2, width=10.5, height=3.8)
        for color, (variant, seeds) in zip(COLORS, outputs.items(), strict=False):
            columns = list(zip(*seeds, strict=True))
            left.plot(range(len(columns)), [mean(column) for column in columns], "o-", color=color, label=variant)
            for seed in seeds:
                left.plot(range(len(columns)), seed, color=color, alpha=0.2, linewidth=1)
        left.set(
            xlabel="decoder output (0: raw queries)", ylabel="mean IoU, %", title="Each output; thin lines are seeds"
        )
        left.legend()
        costs = [cost for cost, _ in omegas.values()]
        right.plot(costs, [mean(values) for _, values in omegas.values()], "o-", color=COLORS[0])
        for omega, (cost, values) in omegas.items():
            right.plot([cost] * len(values), values, ".", color=COLORS[0], alpha=0.4)
            right.annotate(
                "all windows" if omega == 1 else f"1 / {omega}",
                (cost, mean(values)),
                (0, 6),
                textcoords="offset points",
            )
        right.set(
            xlabel=f"multiply-adds of one picture, {unit}", ylabel="mean IoU, %", title="Share of windows kept (omega)"
        )
        right.margins(0.12, 0.2)
    return drawn
