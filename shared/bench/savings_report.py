"""The table and the figure of the switches' bench, and when a difference counts as one."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t

from paperkit.files.atomic import write_atomic
from paperkit.results.measure import Ratio
from paperkit.results.report import figure, markdown_table, save_figure, style, table

AGAIN = "plain step again"

COLUMNS = (
    *("switch", "time x (quartiles)", "peak memory x", "kept for backward x", "multiply-adds x"),
    *("small ViT: time x", "loss x, equal steps", "loss x, equal time", "accuracy", "verdict"),
)
LEAST_MEMORY = 0.05  # a process's peak repeats to about 3 %


@dataclass
class Line:
    """One row of the table; what was not measured is None.

    Attributes:
        time, small_time: of a step, at the two sizes.
        peak, saved, macs: beside the plain step's.
        equal_steps, equal_time: test loss over the plain run's, per seed; a switch whose step takes as long as the
            plain one, within noise, has no second run.
        accuracy: after equal steps, per seed.
        steps: of the run of equal time.
    """

    name: str
    time: Ratio
    small_time: Ratio
    peak: float
    saved: float
    macs: float
    steps: int = 0
    equal_steps: list[float] | None = None
    equal_time: list[float] | None = None
    accuracy: list[float] | None = None


def floor_of_time(ratios: Mapping[str, Ratio]) -> float:
    """How far from 1 the quartiles of the plain step against itself lie."""
    again = ratios[AGAIN]
    return max(abs(again.q25 - 1), abs(again.q75 - 1))


def moved(ratios: Mapping[str, Ratio], name: str) -> bool:
    """Whether a time is outside of the noise floor, with both of its quartiles."""
    ratio, floor = ratios[name], floor_of_time(ratios)
    return name != AGAIN and (ratio.q75 < 1 - floor or ratio.q25 > 1 + floor)


def floor_of_memory(lines: Sequence[Line]) -> float:
    """How far from 1 the plain step's own peak lies, but at least what a process's peak repeats to."""
    return max(LEAST_MEMORY, abs(lines[0].peak - 1))


def uncertainty(squares: float, seeds: int) -> float:
    """Half the width of the 99 % interval of a mean of `seeds` values with this mean square (Student's t).

    With twenty rows, intervals of 95 % would find one difference where there is none.
    """
    return float(t.ppf(0.995, seeds - 1)) * math.sqrt(squares / seeds)


def floor_of_loss(lines: Sequence[Line]) -> float:
    """How far from 1 the mean ratio of plain runs lies that differ in nothing but the seed."""
    ratios = lines[0].equal_steps or []
    return uncertainty(statistics.fmean((ratio - 1) ** 2 for ratio in ratios), len(ratios))


def moved_loss(ratios: Sequence[float], lines: Sequence[Line]) -> bool:
    """Whether a mean ratio of losses is outside of the noise floor, and of what its own seeds leave open."""
    mean, own = statistics.fmean(ratios), uncertainty(statistics.variance(ratios), len(ratios))
    return abs(mean - 1) > max(floor_of_loss(lines), own)


def verdict(line: Line, lines: Sequence[Line]) -> str:
    """What is outside of the noise floors, in words."""
    if line.name == AGAIN:
        return "the noise floor"
    said = []
    if moved({each.name: each.time for each in lines}, line.name):
        said.append("faster" if line.time.median < 1 else "slower")
    if abs(line.peak - 1) > floor_of_memory(lines):
        said.append("less memory" if line.peak < 1 else "more memory")
    for what, ratios in (("equal steps", line.equal_steps), ("equal time", line.equal_time)):
        if ratios and moved_loss(ratios, lines):
            said.append(f"{'better' if statistics.fmean(ratios) < 1 else 'worse'} after {what}")
    return ", ".join(said) or "within noise"


def cells(line: Line, lines: Sequence[Line]) -> list[str]:
    """A row of the table."""

    def spread(values: list[float] | None) -> str:
        return "-" if values is None else f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"

    def ratio(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.2f}"

    accuracy = "-" if line.accuracy is None else f"{statistics.fmean(line.accuracy):.1f}"
    return [
        line.name,
        f"{line.time.median:.2f} ({line.time.q25:.2f}-{line.time.q75:.2f})",
        *(ratio(value) for value in (line.peak, line.saved, line.macs)),
        f"{line.small_time.median:.2f}",
        spread(line.equal_steps),
        "the same run" if line.equal_steps and not line.equal_time else spread(line.equal_time),
        accuracy,
        verdict(line, lines),
    ]


def report(lines: Sequence[Line], folder: Path, what: str) -> None:
    """Print the table, and write `savings.md` and `savings.png`."""
    rows = [cells(line, lines) for line in lines]
    title = f"The survey's savings beside the plain step ({what}; noise floor of the loss: {floor_of_loss(lines):.2f})"
    table(rows, COLUMNS, title)
    write_atomic(folder / "savings.md", f"{title}\n\n{markdown_table(rows, COLUMNS)}\n")
    draw(lines, folder / "savings.png", what)
    print(f"{folder}: savings.json, savings.md, savings.png")


def draw(lines: Sequence[Line], path: Path, what: str) -> None:
    """Bars: time and peak memory as ratios, and the loss after equal time, each with its noise floor in grey."""
    places = range(len(lines), 0, -1)
    names = [line.name for line in lines]
    with style():
        drawn, axes = figure(1, 3, width=12, height=1.2 + 0.3 * len(lines), sharey=True)
        time, memory, loss = axes
        medians = [line.time.median for line in lines]
        spread = [[m - line.time.q25 for m, line in zip(medians, lines, strict=True)],
                  [line.time.q75 - m for m, line in zip(medians, lines, strict=True)]]  # fmt: skip
        time.barh(places, medians, xerr=spread)
        memory.barh(places, [line.peak for line in lines])
        losses = [line.equal_time or line.equal_steps for line in lines]
        trained = [(place, values) for place, values in zip(places, losses, strict=True) if values]
        loss.barh(
            [place for place, _ in trained],
            [statistics.fmean(values) for _, values in trained],
            xerr=[statistics.stdev(values) for _, values in trained],
        )
        floors = floor_of_time({line.name: line.time for line in lines}), floor_of_memory(lines), floor_of_loss(lines)
        for axis, floor in zip(axes, floors, strict=True):
            axis.axvspan(1 - floor, 1 + floor, color="0.8", zorder=0)
            axis.axvline(1, color="0.4", linewidth=0.8)
        time.set_yticks(places, names)
        time.set_xlabel("time of a step / plain step")
        memory.set_xlabel("peak memory / plain step")
        loss.set_xlabel("test loss after equal time / plain run")
        drawn.suptitle(f"Left of the line is better; grey is noise ({what})")
        save_figure(drawn, path)
