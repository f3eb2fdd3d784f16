"""Times of packed layers beside other forms, and where a packed block spends its time."""

import textwrap
from collections.abc import Mapping

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style


def draw_latency(
    layers: Mapping[str, Mapping[str, float]], parts: Mapping[str, Mapping[str, float]], machine: str
) -> Figure:
    """Left: bars of each kind of layer, kind -> form -> ms. Right: stacked bars, block -> part -> ms.

    Args:
        machine: CPU features, tier and threads; the title.
    """
    forms = list(dict.fromkeys(form for times in layers.values() for form in times))
    with style():
        drawn, (left, right) = figure(1, 2, width=12, height=4.4, width_ratios=[2, 1])
        width = 0.8 / max(1, len(forms))
        for i, form in enumerate(forms):
            places = [
                j + width * (i - (len(forms) - 1) / 2) for j, times in enumerate(layers.values()) if form in times
            ]
            heights = [times[form] for times in layers.values() if form in times]
            shade = dict(color=COLORS[i % len(COLORS)], hatch="//" if i >= len(COLORS) else None)
            left.bar(places, heights, 0.9 * width, label=form, **shade)
        left.set_xticks(range(len(layers)), list(layers), rotation=20, ha="right")
        left.set(ylabel="ms (log)", yscale="log", title="Time of each kind of layer")
        left.legend(fontsize=7, ncols=2, loc="upper left")
        left.set_ylim(top=30 * left.get_ylim()[1])  # room for the legend
        names = list(dict.fromkeys(part for times in parts.values() for part in times))
        below = [0.0] * len(parts)
        for i, name in enumerate(names):
            heights = [times.get(name, 0.0) for times in parts.values()]
            right.bar(list(parts), heights, 0.6, bottom=below, color=COLORS[i % len(COLORS)], label=name)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        right.set(ylabel="ms", title="Where a block spends its time")
        if names:
            right.legend(fontsize=8)
        drawn.suptitle("\n".join(textwrap.wrap(machine, 150)), fontsize=9)
    return drawn
