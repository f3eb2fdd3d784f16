"""Noise statistics over time, and what they do to the noise that a stochastic sampler adds.

Shapes: S sampled steps, C channels.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from paperkit.results.report import COLORS, figure, style


def draw_statistics(timesteps: Sequence[int], k: Tensor, r: Tensor, bias: Tensor, residual_std: Tensor) -> Figure:
    """Slope (S,), squared correlation (S,), bias (S, C) and variance of the residual (S,) against time."""
    with style():
        drawn, panels = figure(2, 2, width=9, height=5.6, sharex=True)
        slope, correlation, mean, variance = panels.flat
        slope.plot(timesteps, k, ".-")
        slope.axhline(0, color="gray", linewidth=0.8)
        slope.set_ylabel("slope k")
        correlation.plot(timesteps, r.square(), ".-")
        correlation.set_ylabel("squared correlation of error and noise")
        for channel in range(bias.shape[1]):
            mean.plot(timesteps, bias[:, channel], ".-", label=f"channel {channel}")
        mean.axhline(0, color="gray", linewidth=0.8)
        mean.set(xlabel="time step t", ylabel="bias")
        mean.legend()
        variance.plot(timesteps, residual_std.square(), ".-")
        variance.set(xlabel="time step t", ylabel="variance of the residual", yscale="log")
        drawn.suptitle("The quantisation error over time: sampling runs from right to left")
    return drawn


def draw_sigmas(timesteps: Sequence[int], scheduled: Tensor, calibrated: Tensor, added: Tensor) -> Figure:
    """Spread of a step's noise (S,): as scheduled, as calibrated, and what quantisation adds by itself, `|c_t| s_q`."""
    with style():
        drawn, panel = figure(width=6.6, height=4)
        panel.plot(timesteps, scheduled, "-", color=COLORS[0], label="$\\sigma_t$, scheduled")
        panel.plot(timesteps, calibrated, "--", color=COLORS[1], label="$\\sigma'_t$, calibrated")
        panel.plot(timesteps, added, ":", color=COLORS[2], label="$|c_t| s_q$, from quantisation")
        panel.set(xlabel="time step t", ylabel="standard deviation", yscale="log")
        panel.set_title("Quantisation noise replaces a part of the sampler's own")
        panel.legend()
    return drawn
