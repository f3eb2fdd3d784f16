"""Actions along a video's time: the truth, and what was found, as bars with their scores.

Times are in one unit for all bars: seconds of the video or frames of a clip.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from paperkit.results.report import COLORS, figure, save_figure, style

MOST = 40
"""Bars that a lane shows: those with the highest scores."""


class Bar(NamedTuple):
    """One action; a truth has no score."""

    start: float
    end: float
    label: str
    score: float | None = None


def draw_timeline(
    path: str | os.PathLike[str],
    truth: Sequence[Bar],
    detections: Sequence[Bar] | Mapping[str, Sequence[Bar]],
    *,
    title: str = "Actions found along the video",
    unit: str = "s",
    length: float | None = None,
    begin: float = 0.0,
    least: float = 0.0,
    most: int = MOST,
) -> None:
    """Write a PNG file with a lane for the truth, where there is one, and a lane for each list of detections.

    Args:
        path: of the file.
        truth: the annotated actions; empty where nobody knows them.
        detections: what was found; several lists (such as coarse and refined) by name.
        title: says what to see.
        unit: of the times.
        length: of the video, the right end of the picture; by default the last end of a bar.
        begin: the left end of the picture.
        least: score below which a detection is not shown.
        most: bars of a lane at most, those with the highest scores.
    """
    found = detections if isinstance(detections, Mapping) else {"detected": detections}
    lanes = {name: strongest(bars, least, most) for name, bars in found.items()}
    save_figure(timeline({"truth": list(truth), **lanes} if truth else lanes, title, unit, length, begin), path)


def strongest(bars: Sequence[Bar], least: float, most: int) -> list[Bar]:
    """The `most` bars with the highest scores of at least `least`."""
    kept = [bar for bar in bars if bar.score is None or bar.score >= least]
    return sorted(kept, key=lambda bar: -(1.0 if bar.score is None else bar.score))[:most]


def stacked(bars: Sequence[Bar]) -> list[int]:
    """For each bar its row in the lane: the first one where no earlier bar overlaps it."""
    ends: list[float] = []
    rows = [0] * len(bars)
    for place in sorted(range(len(bars)), key=lambda i: (bars[i].start, bars[i].end)):
        bar = bars[place]
        row = next((i for i, end in enumerate(ends) if end <= bar.start), len(ends))
        ends[row:] = [bar.end, *ends[row + 1 :]]
        rows[place] = row
    return rows


def timeline(
    lanes: Mapping[str, Sequence[Bar]], title: str, unit: str, length: float | None = None, begin: float = 0.0
) -> Figure:
    """Lanes of bars from top to bottom, one colour a class; a bar is the fainter the lower its score."""
    labels = sorted({bar.label for bars in lanes.values() for bar in bars})
    colors = {label: _color(i, len(labels)) for i, label in enumerate(labels)}
    rows = {name: stacked(bars) for name, bars in lanes.items()}
    heights = {name: 1 + max(places, default=0) for name, places in rows.items()}
    last = max((bar.end for bars in lanes.values() for bar in bars), default=1.0)
    with style():
        legend = 0.25 * -(-len(labels) // 5)
        drawn, panel = figure(width=10.0, height=1.3 + legend + 0.27 * (sum(heights.values()) + len(lanes)))
        top, ticks = 0.0, []
        for name, bars in lanes.items():
            for bar, row in zip(bars, rows[name], strict=True):
                _draw_bar(panel, bar, top + row, colors[bar.label])
            ticks.append((top + (heights[name] - 1) / 2, name if bars else f"{name} (none)"))
            top += heights[name] + 0.6
            panel.axhline(top - 0.8, color="#BBBBBB", linewidth=0.8)
        panel.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
        panel.set(xlim=(begin, length or last), ylim=(top - 0.8, -0.8), xlabel=f"time, {unit}", title=title)
        panel.grid(axis="y", visible=False)
        if labels:
            handles = [Patch(color=colors[label], label=label) for label in labels]
            drawn.legend(handles=handles, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    return drawn


def _draw_bar(panel: Any, bar: Bar, row: float, color: Any) -> None:
    faint = 1.0 if bar.score is None else 0.25 + 0.75 * min(1.0, max(0.0, bar.score))
    panel.barh(
        row, bar.end - bar.start, 0.8, left=bar.start, color=color, alpha=faint, edgecolor="black", linewidth=0.4
    )
    if bar.score is not None:
        panel.annotate(
            f"{bar.score:.2f}",
            (bar.start, row),
            (2, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
            clip_on=True,
        )


def _color(place: int, count: int) -> Any:
    """Okabe and Ito's colours for few classes, a longer palette for many."""
    return COLORS[place] if count < len(COLORS) else colormaps["tab20"](place * 2 % 20 + place // 10 % 2)
