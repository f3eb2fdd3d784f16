"""The plot of `litv2 bench`."""

from pathlib import Path
from typing import Any

from paperkit.results.report import COLORS, figure, save_figure, style

Rows = list[dict[str, Any]]


def draw(layers: Rows, forms: Rows, rivals: Rows, path: Path) -> None:
    """Layers by grid, forms by size, rivals at 224 px; every bar is a time over LITv2's or HiLo's."""
    with style():
        drawn, (left, middle, right) = figure(1, 3, width=13, height=4.2)
        for i, name in enumerate(dict.fromkeys(c["name"] for c in layers)):
            line = [(c["side"], c["over_hilo"]) for c in layers if c["name"] == name]
            left.plot(*zip(*line, strict=True), "o-", color=COLORS[i % len(COLORS)], label=name)
        left.set(xlabel="grid side (tokens)", ylabel="time / HiLo .9", yscale="log", title="one layer")
        left.legend(fontsize=7)
        plain = [r for r in forms if r["form"] == "plain"]
        middle.bar([str(r["size"]) for r in plain], [r["over_litv2"] for r in plain], color=COLORS[0])
        middle.axhline(1, color="grey", linewidth=1)
        middle.set(xlabel="image side (px)", ylabel="time / fused", title="LITv2-S: plain form")
        chosen = [r for r in rivals if r["size"] == 224 and r["threads"] == 1 and r["precision"] == "highest"][1:]
        right.barh([r["network"] for r in chosen], [r["over_litv2"] for r in chosen], color=COLORS[2])
        right.axvline(1, color="grey", linewidth=1)
        right.set(xlabel="time / LITv2-S", title="timm, 224 px, one thread")
        drawn.suptitle("Above 1, HiLo or LITv2-S is faster (float32, batch 1, this machine)")
        save_figure(drawn, path)
