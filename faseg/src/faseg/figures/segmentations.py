"""Pictures, their label maps, and what each variant made of them, with the wrong pixels marked (figure 6).

Shapes: H, W a picture's size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from paperkit.results.report import figure, style


def draw_segmentations(
    pictures: Sequence[Tensor],
    truths: Sequence[Tensor],
    found: Mapping[str, Sequence[Tensor]],
    classes: Sequence[str],
    nothing: int = 255,
) -> Figure:
    """A row for each picture: itself, its labels, then for each variant the labels that it found and its errors.

    Args:
        pictures: (H, W) or (H, W, 3) in [0, 1].
        truths: (H, W) labels.
        found: variant -> (H, W) labels of each picture.
        classes: their names.
        nothing: label without a class.
    """
    with style():
        columns = 2 + 2 * len(found)
        drawn, panels = figure(
            len(pictures), columns, width=0.4 + 1.3 * columns, height=1.1 + 1.3 * len(pictures), squeeze=False
        )
        for row, (picture, truth) in enumerate(zip(pictures, truths, strict=True)):
            _show(panels[row][0], picture, "picture" if row == 0 else "")
            _show(panels[row][1], painted(truth, len(classes), nothing), "labels" if row == 0 else "")
            for i, (variant, labels) in enumerate(found.items()):
                ours, wrong = panels[row][2 + 2 * i], panels[row][3 + 2 * i]
                _show(ours, painted(labels[row], len(classes), nothing), variant if row == 0 else "")
                _show(wrong, (labels[row] != truth).float(), f"{variant}, wrong" if row == 0 else "")
        handles = [Patch(color=_color(i), label=name) for i, name in enumerate(classes)]
        drawn.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 10), frameon=False)
        drawn.suptitle("Segmentations and their errors (white: wrong label, also on empty ground)", fontsize=10)
    return drawn


def painted(labels: Tensor, classes: int, nothing: int = 255) -> Tensor:
    """(H, W) labels -> (H, W, 3) colours; black where there is no class."""
    colors = torch.zeros(max(nothing, classes) + 1, 3)
    for i in range(classes):
        colors[i] = torch.tensor(_color(i))
    return colors[labels]


def _color(label: int) -> tuple[float, float, float]:
    red, green, blue, _ = colormaps["tab20"](label * 2 % 20 + label // 10 % 2)
    return red, green, blue


def _show(panel: Any, picture: Tensor, title: str) -> None:
    panel.imshow(picture, cmap="gray", vmin=0, vmax=1)
    panel.set(xticks=[], yticks=[])
    panel.grid(False)
    if title:
        panel.set_title(title, fontsize=8)
