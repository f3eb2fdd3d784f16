"""The three attentions side by side: which products they make, and what each costs."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ecoformer.method.energy import ecoformer_operations, performer_operations, softmax_operations
from ecoformer.method.performer import feature_count
from paperkit.results.report import COLORS, figure, style

TOKENS, WIDTH, BITS, SUPPORTS = 3136, 64, 16, 25


def draw_three_attentions() -> Figure:
    """Softmax, kernel features (FAVOR+) and EcoFormer, one head, with multiplications, additions and energy."""
    n, c, features = TOKENS, WIDTH, feature_count(WIDTH)
    counts = (
        softmax_operations(n, c, 1),
        performer_operations(n, c, 1, features),
        ecoformer_operations(n, c, 1, BITS, SUPPORTS),
    )
    steps = (
        ("Softmax attention", ["q, k, v    N x C", "q k$^T$    N x N map", "softmax of each row", "map · v    N x C"]),
        (
            "Kernel features (FAVOR+)",
            ["q, k, v    N x C", f"$\\phi$(q), $\\phi$(k)    N x F, F = {features}", "$\\phi$(k)$^T$ v    F x C",
             "$\\phi$(q) · that    N x C"],
        ),
        (
            "EcoFormer",
            ["qk (one vector), v    N x C", f"code h of ±1    N x b, b = {BITS}\nby a kernel hash, m = {SUPPORTS}",
             "h$^T$ v    b x C, additions", "h · that, / counts    N x C"],
        ),
    )  # fmt: skip
    with style():
        drawn, panels = figure(1, 3, width=11, height=4.6)
        for panel, color, (title, boxes), count in zip(panels, COLORS, steps, counts, strict=False):
            _panel(panel, color, title, boxes)
            cost = f"{count.mul / 1e6:,.1f} M mul, {count.add / 1e6:,.1f} M add\n{count.energy_pj() / 1e6:,.1f} µJ"
            panel.text(0.5, 0.02, cost, ha="center", va="bottom", fontsize=10, fontweight="bold", color=color)
        drawn.suptitle(
            f"What each attention multiplies: one head, N = {n} tokens, C = {c} (energy model at 45 nm, fp32; "
            "softmax and exp count 0)",
            fontsize=10,
        )
    return drawn


def _panel(panel: Any, color: str, title: str, boxes: list[str]) -> None:
    panel.set(xlim=(0, 1), ylim=(0, 1))
    panel.axis("off")
    panel.set_title(title)
    for i, words in enumerate(boxes):
        bottom = 0.82 - 0.2 * i
        shape = FancyBboxPatch(
            (0.08, bottom), 0.84, 0.13, boxstyle="round,pad=0.01", edgecolor=color, facecolor="white"
        )
        panel.add_patch(shape)
        panel.text(0.5, bottom + 0.065, words, ha="center", va="center", fontsize=9)
        if i:
            arrow = dict(arrowstyle="->", color=color)
            panel.annotate("", (0.5, bottom + 0.145), (0.5, bottom + 0.19), arrowprops=arrow)
