"""Figure 3: what a sampler has learned to choose, for each budget."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from focusformer.method.architecture import Architecture, SearchSpace
from paperkit.results.report import COLORS, figure, style

Shares = Mapping[str, Sequence[Sequence[float | None]]]
"""`depth` and `embed`: one row of the shares of each choice; `heads` and `ratios`: a row for each choice, a column for
each layer, among the samples that have the layer (nan where none has it)."""

NAMES = {"depth": "depth", "embed": "width", "heads": "heads", "ratios": "MLP ratio"}


def choice_shares(samples: Sequence[Architecture], space: SearchSpace) -> dict[str, list[list[float]]]:
    """How often each choice of the space was made in some samples."""
    shares = {
        kind: [[sum(getattr(sample, kind) == value for sample in samples) / len(samples) for value in choices]]
        for kind, choices in (("depth", space.depth), ("embed", space.embed))
    }
    for kind in ("heads", "ratios"):
        layers = [
            [getattr(sample, kind)[layer] for sample in samples if sample.depth > layer]
            for layer in range(max(space.depth))
        ]
        shares[kind] = [
            [sum(found == value for found in layer) / len(layer) if layer else float("nan") for layer in layers]
            for value in getattr(space, kind)
        ]
    return shares


def draw_policy(policies: Mapping[str, Shares], space: SearchSpace, title: str) -> Figure:
    """A column for each budget: bars of depth and width, maps of heads and MLP ratios over the layers.

    Args:
        policies: budget -> its shares; None, as JSON has it, for nan. space: whose choices they are.
    """
    columns = len(policies)
    with style():
        drawn, panels = figure(4, columns, width=2.7 * columns + 1, height=8, squeeze=False)
        for column, (budget, shares) in enumerate(policies.items()):
            for row, kind in enumerate(NAMES):
                panel, labels = panels[row][column], [f"{value:g}" for value in getattr(space, kind)]
                if kind in ("depth", "embed"):
                    panel.bar(labels, shares[kind][0], color=COLORS[0])
                    panel.set(ylim=(0, 1), xlabel=NAMES[kind])
                    continue
                values = [[float("nan") if share is None else share for share in line] for line in shares[kind]]
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
