"""Figures of any stitched network: the curve of every stitch and the map of cuts (paper, figures 4 and 7), measured
times, and the network beside other models (figure 1).
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from paperkit.errors import UserError
from paperkit.results.metrics import Metrics
from paperkit.results.report import COLORS, figure, save_figure, style
from snnet.method.budget import pareto_front, read_latencies


@dataclass(frozen=True)
class Point:
    """One configuration in a figure. Accuracy in percent; `cut` is (front anchor, p, q), None for an anchor."""

    config_id: int
    name: str
    macs: int
    params: int
    acc1: float
    cut: tuple[int, int, int] | None
    spread: float = 0.0


def draw(metrics: Metrics, folder: Path) -> list[Path]:
    """The figures of an evaluation on real data."""
    points = points_of(metrics)
    names = metrics.extra["anchors"]  # of all, also where only some configurations were evaluated
    title = f"Every configuration of one network ({metrics.extra['data']})"
    paths = [draw_curve(points, folder / "stitches.png", title)]
    return paths + (draw_cut_maps(points, folder, names) if not metrics.extra["staged"] else [])


def points_of(metrics: Metrics) -> list[Point]:
    """Every configuration of an evaluation on real data."""
    return [point(configuration, [configuration["acc1"]]) for configuration in metrics.extra["configurations"]]


def draw_more(points: Sequence[Point], run: Path, zoo: str | None, folder: Path) -> list[Path]:
    """What needs more than metrics.json: the latencies of a run, if they were measured, and a table of other models.

    Args:
        run: the run folder.
        zoo: CSV of other models, see `read_zoo`.
    """
    times = read_latencies(run)
    paths = draw_latency(points, times, folder) if times else []
    return paths + ([draw_zoo(points, read_zoo(Path(zoo)), folder / "zoo.png")] if zoo else [])


def point(configuration: Mapping[str, Any], values: Sequence[float]) -> Point:
    """One entry of the configurations in metrics.json, with its accuracy in every seed."""
    cut = configuration["cut"]
    return Point(
        configuration["id"],
        configuration["name"],
        configuration["macs"],
        configuration["params"],
        mean(values),
        None if cut is None else (cut[0], cut[1], cut[2]),
        stdev(values) if len(values) > 1 else 0.0,
    )


def draw_curve(
    points: Sequence[Point], path: Path, title: str, baselines: Mapping[str, Sequence[tuple[int, float]]] | None = None
) -> Path:
    """Accuracy against multiply-adds: stitches as dots (area: parameters), anchors as stars, the Pareto front."""
    with style():
        drawn, axes = figure(width=7.2, height=4.6)
        unit, label = _unit(max(p.macs for p in points))
        stitches, anchors = [p for p in points if p.cut], [p for p in points if not p.cut]
        largest = max(p.params for p in points)
        fronts = sorted({p.cut[0] for p in stitches if p.cut})
        for front in fronts:
            group = [p for p in stitches if p.cut and p.cut[0] == front]
            name = f"stitch {anchors[front].name} > {anchors[front + 1].name}" if len(anchors) > front + 1 else "stitch"
            axes.scatter(
                [p.macs / unit for p in group],
                [p.acc1 for p in group],
                s=[15 + 60 * p.params / largest for p in group],
                color=COLORS[front % len(COLORS)],
                alpha=0.75,
                linewidths=0,
                label=name,
            )
        _errors(axes, points, unit)
        front_line = _pareto(points)
        axes.plot(
            [p.macs / unit for p in front_line],
            [p.acc1 for p in front_line],
            color="#888888",
            linewidth=1,
            zorder=1,
            label="Pareto front",
        )
        axes.scatter(
            [p.macs / unit for p in anchors],
            [p.acc1 for p in anchors],
            marker="*",
            s=170,
            color="black",
            zorder=4,
            label="anchors in the network",
        )
        for anchor in anchors:
            axes.annotate(
                anchor.name, (anchor.macs / unit, anchor.acc1), xytext=(6, -11), textcoords="offset points", fontsize=8
            )
        for i, (name, found) in enumerate((baselines or {}).items()):
            axes.scatter(
                [macs / unit for macs, _ in found],
                [acc for _, acc in found],
                marker="xP^v"[i % 4],
                color=COLORS[(i + 3) % len(COLORS)],
                label=name,
                zorder=3,
            )
        axes.set(xlabel=f"multiply-adds per image [{label}]", ylabel="top-1 accuracy [%]", title=title)
        axes.legend(loc="best")
        save_figure(drawn, path)
    return path


def draw_cut_maps(points: Sequence[Point], folder: Path, names: Sequence[str]) -> list[Path]:
    """Per anchor pair a heat map of accuracy over exit block p (rows) and entry block q (columns)."""
    paths = []
    for front in sorted({p.cut[0] for p in points if p.cut}):
        cuts = {(p.cut[1], p.cut[2]): p.acc1 for p in points if p.cut and p.cut[0] == front}
        rows, columns = max(p for p, _ in cuts) + 1, max(q for _, q in cuts) + 1
        grid = np.full((rows, columns), np.nan)
        for cut, accuracy in cuts.items():
            grid[cut] = accuracy
        with style():
            drawn, axes = figure(width=max(4.2, 0.5 * columns + 2), height=max(3.4, 0.4 * rows + 1.6))
            image = axes.imshow(grid, cmap="viridis", aspect="auto")
            if len(cuts) <= 40:
                middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
                for (p, q), accuracy in cuts.items():
                    color = "black" if accuracy > middle else "white"
                    axes.text(q, p, f"{accuracy:.1f}", ha="center", va="center", fontsize=7, color=color)
            axes.grid(False)
            axes.set_xticks(range(columns))
            axes.set_yticks(range(rows))
            axes.set(
                xlabel=f"entry block q of {names[front + 1]}",
                ylabel=f"exit block p of {names[front]}",
                title=f"Accuracy of each cut, {names[front]} > {names[front + 1]}",
            )
            drawn.colorbar(image, label="top-1 accuracy [%]")
            path = folder / f"cuts_{names[front]}_{names[front + 1]}.png"
            save_figure(drawn, path)
        paths.append(path)
    return paths


def draw_latency(points: Sequence[Point], milliseconds: Mapping[int, float], folder: Path) -> list[Path]:
    """Accuracy against measured time, and the configuration chosen as the allowed time falls and rises again."""
    times = [milliseconds[p.config_id] for p in points]
    with style():
        drawn, axes = figure()
        for label, marker, chosen in (("stitch", "o", True), ("anchor", "*", False)):
            found = [(t, p.acc1) for t, p in zip(times, points, strict=True) if bool(p.cut) == chosen]
            axes.scatter(
                [t for t, _ in found], [a for _, a in found], marker=marker, s=40 if chosen else 150, label=label
            )
        axes.set(
            xlabel="measured time per image [ms], batch of 1",
            ylabel="top-1 accuracy [%]",
            title="Accuracy against measured time",
        )
        axes.legend(loc="lower right")
        save_figure(drawn, folder / "latency.png")
        drawn, (above, below) = figure(2, 1, height=5.0, sharex=True)
        steps = np.linspace(0, 2 * np.pi, 120)
        budget = min(times) + (max(times) - min(times)) * (1 + np.cos(steps)) / 2
        runs = [
            max((p for p, t in zip(points, times, strict=True) if t <= b + 1e-12), key=lambda p: p.acc1) for b in budget
        ]
        above.plot(budget, color="black", label="allowed")
        above.step(
            range(len(runs)), [milliseconds[p.config_id] for p in runs], where="post", label="chosen configuration"
        )
        above.set(ylabel="time [ms]", title="The most accurate configuration within a time that falls and rises")
        above.legend(loc="lower right")
        below.step(range(len(runs)), [p.acc1 for p in runs], where="post", color=COLORS[2])
        below.set(xlabel="step", ylabel="top-1 accuracy [%]")
        save_figure(drawn, folder / "budget_trace.png")
    return [folder / "latency.png", folder / "budget_trace.png"]


def draw_zoo(points: Sequence[Point], zoo: Sequence[tuple[str, float, float]], path: Path) -> Path:
    """One network's stitches beside other models (name, multiply-adds, accuracy), as in the paper's figure 1."""
    unit, label = _unit(max(p.macs for p in points))
    with style():
        drawn, axes = figure(width=7.2, height=4.6)
        axes.scatter(
            [macs / unit for _, macs, _ in zoo], [acc for _, _, acc in zoo], color="#888888", label="single models"
        )
        for name, macs, accuracy in zoo:
            axes.annotate(name, (macs / unit, accuracy), xytext=(4, 3), textcoords="offset points", fontsize=7)
        front = _pareto(points)
        axes.plot(
            [p.macs / unit for p in front], [p.acc1 for p in front], marker="o", label="one SN-Net (Pareto front)"
        )
        axes.set(
            xlabel=f"multiply-adds per image [{label}]",
            ylabel="top-1 accuracy [%]",
            title="One SN-Net beside single models",
        )
        axes.legend(loc="lower right")
        save_figure(drawn, path)
    return path


def read_zoo(path: Path) -> list[tuple[str, float, float]]:
    """(name, multiply-adds, top-1 in percent) of each line of a CSV with a heading."""
    try:
        with path.open(newline="") as file:
            return [(row["name"], float(row["flops"]), float(row["top1"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} needs the columns name, flops, top1 with numbers in the last two ({error})") from None


def _errors(axes: Axes, points: Sequence[Point], unit: float) -> None:
    if any(p.spread for p in points):
        axes.errorbar(
            [p.macs / unit for p in points],
            [p.acc1 for p in points],
            [p.spread for p in points],
            fmt="none",
            ecolor="#BBBBBB",
            elinewidth=0.8,
            capsize=0,
            zorder=0,
        )


def _pareto(points: Sequence[Point]) -> list[Point]:
    by_id = {p.config_id: p for p in points}
    return [by_id[i] for i in pareto_front((p.config_id, p.macs, p.acc1) for p in points)]


def _unit(largest: int) -> tuple[float, str]:
    return (1e9, "G") if largest >= 1e8 else (1e6, "M")
