"""Pictures of a run on sequences: its curves, what attention costs by length, and what the tokens attend to.

Shapes: N tokens.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from ecoformer.method.energy import ecoformer_operations, performer_operations, softmax_operations
from ecoformer.method.performer import feature_count
from paperkit.results.report import COLORS, figure, style

LENGTHS = [2**power for power in range(5, 15)]


def draw_curves(rows: Sequence[Mapping[str, str]], majority: float, title: str) -> Figure:
    """Training loss and validation accuracy over the optimiser steps.

    Args:
        rows: of the run's table of values: `step`, `train/loss`, `val/acc1` (a share), empty where there is none.
        majority: rate of the commonest class of the test split, %.
    """
    with style():
        drawn, (left, right) = figure(1, 2, width=10, height=3.6)
        for panel, key, scale in ((left, "train/loss", 1.0), (right, "val/acc1", 100.0)):
            points = [(int(row["step"]), scale * float(row[key])) for row in rows if row.get(key)]
            panel.plot([step for step, _ in points], [value for _, value in points], ".-", color=COLORS[0])
            panel.set(xlabel="optimiser step")
        left.set(ylabel="training loss (cross entropy)", title="Loss")
        right.axhline(majority, linestyle="--", color=COLORS[1], label=f"commonest class, {majority:.1f} %")
        right.set(ylabel="validation accuracy, %", title="Accuracy: above the dashed line something is learned")
        right.legend()
        drawn.suptitle(title)
    return drawn


def draw_energy_by_length(width: int, heads: int, nbits: int, supports: int, length: int) -> Figure:
    """Energy of one attention layer against the number of tokens: softmax, Performer, EcoFormer.

    Args:
        width: of queries, keys and values, all heads together. length: longest sequence of the run, marked.
    """
    features = feature_count(width // heads)
    forms = {
        "softmax": [softmax_operations(n, width, heads) for n in LENGTHS],
        f"Performer, {features} features": [performer_operations(n, width, heads, features) for n in LENGTHS],
        f"EcoFormer, {nbits} bits, {supports} supports": [
            ecoformer_operations(n, width, heads, nbits, supports) for n in LENGTHS
        ],
    }
    with style():
        drawn, panel = figure(width=6.5, height=4)
        for color, (name, counts) in zip(COLORS, forms.items(), strict=False):
            panel.plot(LENGTHS, [count.energy_pj() / 1e6 for count in counts], "o-", color=color, label=name)
        panel.axvline(length, linestyle="--", color="gray", label=f"this run: {length} tokens at most")
        panel.set(xscale="log", yscale="log", xlabel="tokens", ylabel="million pJ a layer (fp32, a model)")
        panel.set_title(f"Energy of attention by length: {heads} head(s), width {width}")
        panel.legend()
    return drawn


def draw_attention_maps(maps: Mapping[str, Tensor], title: str) -> Figure:
    """Layer -> similarity of all pairs of tokens (N, N), rows the tokens that attend."""
    with style():
        drawn, panels = figure(1, len(maps), width=3.6 * len(maps) + 1.8, height=3.8, squeeze=False)
        for panel, (name, values) in zip(panels[0], maps.items(), strict=True):
            shown = panel.imshow(values.numpy(), cmap="viridis")
            panel.set(xlabel="token attended to", title=name)
            panel.grid(False)
            drawn.colorbar(shown, ax=panel, shrink=0.8)
        panels[0][0].set_ylabel("token")
        drawn.suptitle(title, fontsize=10)
    return drawn
