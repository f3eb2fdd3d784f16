"""Samples of all arms from the same noise, and how far their trajectories leave the float one.

Shapes: N images, C channels, S sampled steps.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from paperkit.results.report import COLORS, figure, style


def draw_grid(rows: Mapping[str, Tensor], title: str) -> Figure:
    """Arm -> images (N, C, H, W) in [-1, 1], a row each; the same column starts from the same noise."""
    with style():
        count = len(next(iter(rows.values())))
        drawn, panels = figure(len(rows), 1, width=2 + 0.6 * count, height=0.5 + 0.8 * len(rows), squeeze=False)
        for panel, (arm, images) in zip(panels.flat, rows.items(), strict=True):
            strip = (images.clamp(-1, 1) + 1).div(2).permute(2, 0, 3, 1).flatten(1, 2)  # (H, N W, C)
            panel.imshow(strip.expand(-1, -1, 3), interpolation="nearest")
            panel.set_ylabel(arm.replace(", ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
            panel.set(xticks=[], yticks=[])
            panel.grid(False)
        drawn.suptitle(title)
    return drawn


def draw_paths(timesteps: Sequence[int], arms: Mapping[str, Sequence[float]]) -> Figure:
    """Arm -> mean squared distance (S,) from the float trajectory after each step, in the order of the steps."""
    with style():
        drawn, panel = figure(width=7.4, height=4.2)
        for i, (arm, values) in enumerate(arms.items()):
            line = "-" if i < len(COLORS) else "--"
            panel.plot(timesteps, values, line, marker=".", color=COLORS[i % len(COLORS)], label=arm)
        panel.invert_xaxis()
        panel.set(xlabel="time step t, from noise to image", ylabel="squared distance to the float trajectory")
        panel.set_yscale("log")
        panel.set_title("What quantisation does along one deterministic trajectory, mean of all draws")
        panel.legend(fontsize=8)
    return drawn
