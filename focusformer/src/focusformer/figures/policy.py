"""Figure 3: what a sampler has learned to choose, for each budget."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from focusformer.method.architecture import SearchSpace
from paperkit.results.report import COLORS, figure, style

Shares = Mapping[str, Sequence[Any]]
"""`depth` and `embed`: the share of each choice; `heads` and `ratios`: the same for each layer. As lists, what
`ArchitectureSampler.chances` gives."""

NAMES = {"depth": "depth", "embed": "width", "heads": "heads", "ratios": "MLP ratio"}


def draw_policy(policies: Mapping[str, Shares], space: SearchSpace, title: str) -> Figure:
    """A column for each budget: bars of depth and width, maps of heads and MLP ratios over the layers.

    Args:
        policies: budget -> its shares. space: whose choices they are.
    """
    columns = len(policies)
    with style():
        drawn, panels = figure(4, columns, width=2.7 * columns + 1, height=8, squeeze=False)
        for column, (budget, shares) in enumerate(policies.items()):
            for row, kind in enumerate(NAMES):
                panel, labels = panels[row][column], [f"{value:g}" for value in getattr(space, kind)]
                if kind in ("depth", "embed"):
                    panel.bar(labels, shares[kind], color=COLORS[0])
                    panel.set(ylim=(0, 1), xlabel=NAMES[kind])
                    continue
                values = list(zip(*shares[kind], strict=True))  # a row for each choice
                shown = panel.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
                panel.set_yticks(range(len(labels)), labels)
                layers = range(len(values[0]))
                panel.set_xticks(layers, [str(layer + 1) for layer in layers])
                panel.set(xlabel="layer")
                panel.grid(False)
            panels[0][column].set_title(budget)
        for row, kind in enumerate(NAMES):
            panels[row][0].set_ylabel("share" if kind in ("depth", "embed") else NAMES[kind])
        drawn.colorbar(shown, ax=list(panels[2:].flat), label="share of the samples", shrink=0.6)
        drawn.suptitle(title)
    return drawn
