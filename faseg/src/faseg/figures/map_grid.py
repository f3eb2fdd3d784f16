"""A grid of heat maps over one picture: where each query looks, layer by layer (figures 1 and 2).

Shapes: H, W the picture's size; h, w a map's.
"""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from paperkit.results.report import figure, style

Rows = Mapping[str, Sequence[Tensor | None]]
"""Name of a row -> a map (h, w) for each layer; None where a layer has none."""


def draw_maps(picture: Tensor, rows: Rows, columns: Sequence[str], title: str, signed: bool = False) -> Figure:
    """Maps of any size, enlarged to the picture and laid over it.

    Args:
        picture: (H, W) or (H, W, 3) in [0, 1].
        rows: of the grid.
        columns: their headings, one a layer.
        title: says what to see.
        signed: maps of both signs, on one scale of blue and red; else each map has its own scale, from 0 to its top.
    """
    with style():
        drawn, panels = figure(
            len(rows), len(columns), width=1.0 + 1.15 * len(columns), height=0.9 + 1.15 * len(rows), squeeze=False
        )
        for row, (name, maps) in enumerate(rows.items()):
            panels[row][0].set_ylabel(name, rotation=0, ha="right", va="center")
            for column, heat in enumerate(maps):
                panel = panels[row][column]
                panel.set(xticks=[], yticks=[])
                panel.grid(False)
                if row == 0:
                    panel.set_title(columns[column], fontsize=8)
                panel.imshow(picture, cmap="gray", vmin=0, vmax=1)
                if heat is None:
                    panel.text(0.5, 0.5, "no map", ha="center", va="center", transform=panel.transAxes, fontsize=7)
                    continue
                size = picture.shape[:2]
                large = F.interpolate(heat[None, None].float(), size=tuple(size), mode="bilinear")[0, 0]
                if signed:
                    panel.imshow(large, cmap="RdBu_r", alpha=0.65, vmin=-1, vmax=1)
                else:
                    panel.imshow(large, cmap="inferno", alpha=0.65, vmin=0, vmax=max(float(large.max()), 1e-12))
        drawn.suptitle(title, fontsize=10)
    return drawn


def similarity(query_pos: Tensor, key_pos: Tensor) -> Tensor:
    """Cosine of positional queries (Q, C) with the key positions of a map (C, h, w) -> (Q, h, w), in [-1, 1]."""
    return torch.einsum("qc,chw->qhw", F.normalize(query_pos, dim=-1), F.normalize(key_pos, dim=0))
