"""The quantisation error of the predicted noise: against the prediction itself, and what is left of it.

Shapes: N values.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from paperkit.results.report import COLORS, figure, style

POINTS = 3000  # of a cloud
NORMALITY = 1000  # values a test of normality is given: with all of them every p is 0


def draw_error_scatter(noise: Tensor, error: Tensor, t: int) -> Figure:
    """Error (N,) against the float prediction (N,) at one time step, with the fitted line and its correlation."""
    fit = stats.linregress(noise.double().numpy(), error.double().numpy())
    chosen = np.random.default_rng(0).permutation(len(noise))[:POINTS]
    with style():
        drawn, panel = figure(width=6, height=4)
        panel.plot(noise[chosen], error[chosen], ".", markersize=2, alpha=0.4, color=COLORS[0], label="one pixel")
        ends = np.array([noise.min().item(), noise.max().item()])
        panel.plot(ends, fit.intercept + fit.slope * ends, color=COLORS[1], label="least squares")
        panel.set(xlabel="predicted noise, float network", ylabel="error of the quantised prediction")
        panel.set_title(f"Part of the error is proportional: t = {t}, slope k = {fit.slope:.3f}, r = {fit.rvalue:.2f}")
        panel.legend(markerscale=4)
    return drawn


def draw_residuals(residuals: Mapping[int, Tensor]) -> Figure:
    """Time step -> what the line leaves (N,): the histogram of the first step given, and how normal each one is."""
    steps = list(residuals)
    first = residuals[steps[0]].double().numpy()
    random = np.random.default_rng(0)
    p_values = {
        t: float(stats.normaltest(random.permutation(values.double().numpy())[:NORMALITY]).pvalue)
        for t, values in residuals.items()
    }
    with style():
        drawn, (left, right) = figure(1, 2, width=10, height=3.6)
        _, edges, _ = left.hist(first, bins=80, density=True, color=COLORS[0], alpha=0.5, label="residual")
        left.plot(edges, stats.norm.pdf(edges, first.mean(), first.std()), color=COLORS[1], label="Gaussian")
        left.set(xlabel="error without its proportional part", ylabel="density")
        left.set_title(f"The residual at t = {steps[0]}")
        left.legend()
        right.plot(steps, [max(p_values[t], 1e-30) for t in steps], "o", color=COLORS[0])
        right.axhline(0.05, color="gray", linestyle="--", label="0.05")
        right.set(xlabel="time step t", ylabel="p (below 1e-30 drawn there)", yscale="log")
        right.set_title(f"D'Agostino-Pearson test on {min(NORMALITY, len(first)):,} values")
        right.legend()
    return drawn
