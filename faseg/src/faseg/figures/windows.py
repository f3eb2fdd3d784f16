"""The windows that high-resolution cross-attention chose, on the picture, with the scores behind the choice (figure 3).

Shapes: H, W the picture's size; h, w the coarse map's, one cell a window.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from paperkit.results.report import COLORS, figure, style


def draw_windows(pictures: Sequence[Tensor], scores: Sequence[Tensor], chosen: Sequence[Tensor]) -> Figure:
    """A column for each picture: windows on it above, their scores below.

    Args:
        pictures: (H, W) or (H, W, 3) in [0, 1].
        scores: (h, w), attention of the coarse layer, summed over queries.
        chosen: indices of the kept cells in raster order, best first.
    """
    with style():
        count = len(pictures)
        drawn, (above, below) = figure(2, count, width=0.6 + 1.7 * count, height=4.4, squeeze=False)
        for i, (picture, score, kept) in enumerate(zip(pictures, scores, chosen, strict=True)):
            tall, wide = (pixels / cells for pixels, cells in zip(picture.shape[:2], score.shape, strict=True))
            for panel, sides in ((above[i], (tall, wide)), (below[i], (1.0, 1.0))):
                panel.set(xticks=[], yticks=[])
                panel.grid(False)
                for cell in kept.tolist():
                    row, column = divmod(cell, score.shape[1])
                    corner = column * sides[1] - 0.5, row * sides[0] - 0.5
                    panel.add_patch(Rectangle(corner, sides[1], sides[0], fill=False, edgecolor=COLORS[1], linewidth=2))
            above[i].imshow(picture, cmap="gray", vmin=0, vmax=1)
            below[i].imshow(score, cmap="viridis")
        above[0].set_ylabel("chosen windows")
        below[0].set_ylabel("attention of the\ncoarse layer")
        kept_of = f"{len(chosen[0])} of {scores[0].numel()}"
        drawn.suptitle(f"High-resolution cross-attention reads the {kept_of} windows with most attention", fontsize=10)
    return drawn
