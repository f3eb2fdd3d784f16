"""Pictures of codes: distances of labelled pairs, the fit bit by bit, attention of one token of an image.

Shapes: N tokens, b bits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from paperkit.results.report import COLORS, figure, style


def draw_distances(distances: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Hamming distances of similar, dissimilar and unlabelled pairs: state -> pairs -> share at each distance."""
    with style():
        drawn, panels = figure(1, len(distances), width=9, height=3.6, sharey=True)
        for panel, (state, shares) in zip(panels, distances.items(), strict=True):
            for i, (pairs, values) in enumerate(shares.items()):
                panel.step(range(len(values)), values, where="mid", color=COLORS[i], label=f"{pairs} pairs")
                panel.fill_between(range(len(values)), values, step="mid", alpha=0.15, color=COLORS[i])
            panel.set(xlabel="Hamming distance", title=f"{state} the fit")
        panels[0].set_ylabel("share of the pairs")
        panels[0].legend()
        drawn.suptitle("Distances of codes on images that the fit did not see")
    return drawn


def draw_fits(fits: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Hard loss of each bit before and after its refinement; a filled point is a refinement that was taken."""
    with style():
        drawn, panels = figure(1, len(fits), width=3.2 * len(fits), height=3.6, sharey=True)
        for panel, (name, fit) in zip(panels, fits.items(), strict=True):
            bits = range(1, len(fit["loss_before"]) + 1)
            panel.plot(bits, fit["loss_before"], "-", color=COLORS[1], label="before")
            panel.plot(bits, fit["loss_after"], "-", color=COLORS[0], label="refined")
            taken = [bool(value) for value in fit["accepted"]]
            for accepted, fill in ((True, COLORS[0]), (False, "white")):
                chosen = [(b, y) for b, y, t in zip(bits, fit["loss_after"], taken, strict=True) if t == accepted]
                if chosen:
                    label = "taken" if accepted else "left"
                    panel.plot(*zip(*chosen, strict=True), "o", color=COLORS[0], markerfacecolor=fill, label=label)
            panel.set(xlabel="bit", title=f"{name}\n{sum(taken)} of {len(taken)} taken")
        panels[0].set_ylabel("hard loss (lower is better)")
        panels[0].legend(fontsize=7)
        drawn.suptitle("The greedy fit, bit by bit")
    return drawn


def draw_attention(image: Tensor, maps: Mapping[str, Tensor], query: int, title: str) -> Figure:
    """An image (S, S) with its query token, and what the query attends to: name -> (N,), N = S * S."""
    side = image.shape[-1]
    y, x = divmod(query, side)
    with style():
        drawn, panels = figure(1, 1 + len(maps), width=2.5 * (1 + len(maps)), height=3.0)
        pictures: list[tuple[str, Any, str]] = [("image and query", image, "gray_r")]
        pictures += [(name, weights.view(side, side), "viridis") for name, weights in maps.items()]
        for panel, (name, picture, colors) in zip(panels, pictures, strict=True):
            shown = panel.imshow(picture.numpy(), cmap=colors)
            panel.plot(x, y, "s", markerfacecolor="none", color=COLORS[1], markersize=12, markeredgewidth=2)
            panel.set_title(name, fontsize=9)
            panel.set(xticks=[], yticks=[])
            panel.grid(False)
            if colors == "viridis":
                drawn.colorbar(shown, ax=panel, location="bottom", shrink=0.8).ax.tick_params(labelsize=7)
        drawn.suptitle(title, fontsize=10)
    return drawn
