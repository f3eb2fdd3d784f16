"""How alike the attention maps of two layers are, by variant (figure 4).

Shapes: B batch, Q queries, N tokens.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from paperkit.results.report import COLORS, figure, style


def map_overlap(first: Tensor, second: Tensor, sure: Tensor) -> float:
    """Mean cosine of two attention maps over the confident queries; nan if there are none.

    Args:
        first, second: (B, Q, N) of one size.
        sure: (B, Q), which queries count.
    """
    return float(F.cosine_similarity(first, second, dim=-1)[sure].mean())


def draw_consistency(overlaps: Mapping[str, Sequence[float]], pairs: Sequence[str]) -> Figure:
    """One line for each variant over the pairs of layers.

    Args:
        overlaps: variant -> mean cosine of each pair, in the order of `pairs`.
    """
    with style():
        drawn, panel = figure(width=6.4, height=3.6)
        for color, (variant, values) in zip(COLORS, overlaps.items(), strict=False):
            panel.plot(range(len(values)), values, "o-", color=color, label=variant)
        panel.set_xticks(range(len(pairs)), pairs)
        panel.set(xlabel="pair of layers", ylabel="mean cosine of their attention maps", ylim=(0, 1))
        panel.set_title("Do queries look again where they looked before?")
        panel.legend()
    return drawn
