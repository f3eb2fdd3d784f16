"""Bits by step: the signal-to-noise ratios that decide them, and what quality costs in bit operations.

Shapes: S sampled steps.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style

MARKS = "os^DvP*X<>"


def draw_snr(
    timesteps: Sequence[int],
    widths: Mapping[str, Sequence[float]],
    forward: Sequence[float],
    bits: Mapping[str, Sequence[int]],
) -> Figure:
    """SNR of each width's prediction and of the forward process, and the bits of each schedule, all (S,)."""
    with style():
        drawn, (upper, lower) = figure(2, 1, width=7, height=5.6, sharex=True, height_ratios=(2, 1))
        for i, (name, values) in enumerate(widths.items()):
            upper.plot(timesteps, values, ".-", color=COLORS[i], label=name.upper())
        upper.plot(timesteps, forward, "--", color="black", label="forward process")
        upper.set(ylabel="signal-to-noise ratio", yscale="log")
        upper.set_title("A width may be used where its curve is above the forward process")
        upper.legend()
        for i, (name, values) in enumerate(bits.items()):
            lower.step(timesteps, values, where="mid", color=COLORS[i], alpha=0.8, label=name)
        lower.set(xlabel="time step t (sampling runs from right to left)", ylabel="activation bits")
        lower.legend()
    return drawn


def draw_quality(arms: Mapping[str, tuple[float, float, float]], title: str) -> Figure:
    """Arm -> (bit operations, Frechet distance, paired distance), the smaller the better."""
    with style():
        drawn, panels = figure(1, 2, width=11, height=4.2)
        for place, (panel, label) in enumerate(
            zip(panels, ("pixel Frechet distance", "squared distance to the float samples"), strict=True), 1
        ):
            for i, (arm, numbers) in enumerate(arms.items()):
                mark, color = MARKS[i // len(COLORS)], COLORS[i % len(COLORS)]
                panel.plot(numbers[0], numbers[place], mark, color=color, label=arm)
            panel.set(xlabel="million bit operations a call, nominal, mean of the steps", ylabel=label, xscale="log")
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
        drawn.suptitle(title)
    return drawn
