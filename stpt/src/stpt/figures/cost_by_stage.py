"""Where a backbone's multiply-accumulates lie: stage by stage, linear layers, attention products and convolutions."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style


def draw_cost_by_stage(costs: Mapping[str, Sequence[Mapping[str, float]]], unit: str = "billion") -> Figure:
    """A panel of stacked bars for each network, each on its own scale, with its sum in the title.

    Args:
        costs: network -> for each stage, kind of layer -> multiply-accumulates in `unit`.
    """
    kinds = list(dict.fromkeys(kind for stages in costs.values() for stage in stages for kind in stage))
    with style():
        drawn, row = figure(1, len(costs), width=0.6 + 3.6 * len(costs), height=4.0, squeeze=False)
        for panel, (name, stages) in zip(row[0], costs.items(), strict=True):
            floor = [0.0] * len(stages)
            for color, kind in zip(COLORS, kinds, strict=False):
                heights = [stage.get(kind, 0.0) for stage in stages]
                panel.bar(range(len(stages)), heights, 0.6, bottom=floor, color=color, label=kind)
                floor = [low + height for low, height in zip(floor, heights, strict=True)]
            panel.set_xticks(range(len(stages)), [f"stage {i + 1}" for i in range(len(stages))])
            panel.set(title=f"{name}: {sum(floor):.1f} {unit}", ylabel=f"{unit} multiply-accumulates")
            panel.grid(axis="x", visible=False)
        row[0][0].legend(loc="best")
    return drawn
