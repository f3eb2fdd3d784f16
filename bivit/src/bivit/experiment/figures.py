"""Figures of a run folder, drawn from metrics.json and the first seed's weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bivit.experiment.digit_transformer import SHORT, stages
from bivit.experiment.run import seed_folder, split_digits, trained
from bivit.experiment.settings import A1, A32, CLB, SAB_PWS, TEACHER, TWO_STEPS, student
from bivit.experiment.summary import ACCURACY, BYTES, LONG_ACCURACY, OPS
from bivit.figures.active_sets import RULES
from bivit.figures.curves import draw_curves
from bivit.figures.of_a_model import figures_of, figures_of_student
from bivit.figures.tradeoff import draw_tradeoff
from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import COLORS, figure, save_figure, style

IMAGES = 64  # of the test split, for the pictures of rows and gradients


def draw(metrics: Metrics, run: Path, folder: Path) -> list[Path]:
    """Every figure of a run as PNG files in `folder`."""
    seed = metrics.seeds[0]
    place, images = seed_folder(run, seed), split_digits(seed)[2][0][:IMAGES]
    arms = list(metrics.extra["curves"])
    binary = next((arm for arm in (student(SAB_PWS, A1), student(SAB_PWS, A32)) if arm in arms), arms[-1])
    figures: dict[str, Callable[[], Figure]] = {
        "approximation": lambda: draw_approximation(metrics),
        **figures_of(trained(SHORT, TEACHER, place), images),
        "students": lambda: draw_students(metrics),
        "curves": lambda: draw_seed_curves(metrics.extra["curves"]),
        "tradeoff": lambda: draw_costs(metrics),
        **figures_of_student(trained(SHORT, binary, place), images, binary),
    }
    if metrics.extra["long_seeds"]:
        figures["more_tokens"] = lambda: draw_long(metrics)
    for name, make in figures.items():
        save_figure(make(), folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def draw_approximation(metrics: Metrics) -> Figure:
    """Part A as bars, each seed a point."""
    parts = {
        "A rows: scaled error": "relative squared error with the best scale",
        "A rows: error without scale": "mean squared difference, no scale",
        "A rows: active entries": "active entries, %",
    }
    with style():
        drawn, panels = figure(1, 3, width=12, height=3.2, sharey=True)
        for panel, (metric, label) in zip(panels, parts.items(), strict=True):
            found = [metrics.row(rule, metric) for rule in reversed(RULES)]
            panel.barh([row.arm for row in found], [row.mean for row in found], color=COLORS[0], alpha=0.5)
            for i, row in enumerate(found):
                panel.plot(row.values, [i] * len(row.values), ".", color=COLORS[1])
            panel.set_xlabel(label)
        drawn.suptitle(f"Part A: softmax rows of the teacher in one bit; {len(metrics.seeds)} seeds, bar: mean")
    return drawn


def draw_students(metrics: Metrics) -> Figure:
    """Part B: accuracy of each student, each seed a point."""
    rows = [row for row in metrics.rows if row.metric == ACCURACY]
    return _dots(rows, f"Part B: binary students of one teacher on digits; {len(metrics.seeds)} seeds, bar: mean")


def draw_long(metrics: Metrics) -> Figure:
    """Part C: the same with 64 tokens."""
    rows = [row for row in metrics.rows if row.metric == LONG_ACCURACY]
    return _dots(rows, f"Part C: 64 tokens; {len(rows[0].values)} seed(s), bar: mean")


def _dots(rows: list[Row], title: str) -> Figure:
    with style():
        drawn, panel = figure(width=7, height=1.2 + 0.28 * len(rows))
        for i, row in enumerate(reversed(rows)):
            panel.plot(row.values, [i] * len(row.values), "o", color=COLORS[0], alpha=0.6)
            panel.plot([row.mean], [i], "|", color=COLORS[1], markersize=14, markeredgewidth=2)
        panel.set_yticks(range(len(rows)), [row.arm for row in reversed(rows)])
        panel.set_xlabel("test accuracy, %")
        panel.set_title(title)
    return drawn


def draw_seed_curves(curves: Mapping[str, Any]) -> Figure:
    """Validation accuracy of the SAB students, mean of the seeds; and where those of two stages go on to the second."""
    shown = [student(form, mlp) for form in (SAB_PWS, CLB, TWO_STEPS) for mlp in (A32, A1)]
    means = {
        name: [sum(values) / len(values) for values in zip(*curves[name], strict=True)]
        for name in (shown if set(shown) & set(curves) else curves)
        if name in curves
    }
    staged = [name for name in means if len(stages(name)) > 1]
    border = (len(means[staged[0]]) + 1) // 2 if staged else None
    return draw_curves(means, border, "Students over their epochs, mean of the seeds")


def draw_costs(metrics: Metrics) -> Figure:
    """Accuracy against operations and bytes."""
    found = {
        row.arm: (metrics.row(row.arm, OPS).mean, metrics.row(row.arm, BYTES).mean, row.mean, row.spread or 0.0)
        for row in metrics.rows
        if row.metric == ACCURACY
    }
    return draw_tradeoff(
        found, ("million operations an image", "kB (students packed, the rest in float16)"), "test accuracy, %"
    )
