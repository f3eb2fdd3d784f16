"""Tables and figures that look alike in every paper: on the screen, in Markdown, and as PNG files."""

import io
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from paperkit.files.atomic import write_atomic
from paperkit.results.environment import cpu
from paperkit.results.metrics import Metrics, Row

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "errorbar.capsize": 3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.figsize": (6.4, 4.0),
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
}
PLAIN = box.Box("    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True)  # nothing but the line below the names
NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?[%x]?( ± .+)?|nan|-?inf|-")


class MeanSpread(NamedTuple):
    """Mean and sample standard deviation; prints as `93.1 ± 0.4`, the format applying to both numbers."""

    mean: float
    spread: float | None

    def __format__(self, spec: str) -> str:
        mean = format(self.mean, spec or ".4g")
        return mean if self.spread is None else f"{mean} ± {format(self.spread, spec or '.2g')}"

    def __str__(self) -> str:
        return format(self, "")


def mean_spread(values: Iterable[float]) -> MeanSpread:
    """Mean and spread (n - 1) of the values of several seeds; one value has no spread.

    Raises:
        ValueError: without any value.
    """
    row = Row("", "", list(values))
    return MeanSpread(row.mean, row.spread)


def text(value: object) -> str:
    """A table cell: floats to four significant digits, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if math.isfinite(value) and abs(value) >= 1e5 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def plain_table(rows: Iterable[Sequence[object]], columns: Sequence[str], title: str = "") -> str:
    """Columns of equal width, numbers to the right, a dashed line below the names."""
    console = Console(width=10_000, color_system=None)
    with console.capture() as drawn:
        console.print(_drawn(rows, columns, PLAIN))
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    return "\n".join(([title] if title else []) + lines)


def markdown_table(rows: Iterable[Sequence[object]], columns: Sequence[str]) -> str:
    """The same table for a README."""
    cells = _cells(rows, columns)
    rule = ["---:" if right else "---" for right in _numeric(cells, len(columns))]
    lines = ([cell.replace("|", "\\|") for cell in line] for line in (columns, rule, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(rows: Iterable[Sequence[object]], columns: Sequence[str], title: str = "") -> None:
    """Prints a table: as wide as the terminal, with rules drawn; into a pipe or a file as plain text."""
    if not sys.stdout.isatty():
        print(plain_table(rows, columns, title), flush=True)
        return
    console = Console()
    if title:
        console.print(Text(title))
    console.print(_drawn(rows, columns, box.SIMPLE_HEAD))


def print_metrics(metrics: Metrics, title: str = "") -> None:
    """Prints the rows of a result (mean ± spread over the seeds, then each seed) and its claims."""
    rows = [
        (row.arm, row.metric, MeanSpread(row.mean, row.spread), row.unit, " ".join(text(v) for v in row.values))
        for row in metrics.rows
    ]
    seeds = ", ".join(map(str, metrics.seeds))
    table(rows, ("arm", "metric", "mean ± spread", "unit", f"per seed ({seeds})"), title or metrics.paper)
    for claim in metrics.claims:
        held = {True: "held", False: "NOT HELD", None: "not tested"}[claim.held]
        print(f"{held} ({'asserted' if claim.asserted else 'reported'}): {claim.text}", end="")
        print(f" [{claim.detail}]" if claim.detail else "", flush=True)


def style() -> AbstractContextManager[None]:
    """The look of all figures, as a context: draw and save inside `with style():`."""
    return matplotlib.rc_context(STYLE)


def figure(
    rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 4.0, **subplots: Any
) -> tuple[Figure, Any]:
    """A figure and its axes (one, or an array of rows x columns) without pyplot, so nothing is left to close.

    Args:
        width, height: of the whole figure, in inches.
        subplots: passed to `Figure.subplots` (`sharex`, `width_ratios`...).
    """
    drawn = Figure(figsize=(width, height))
    return drawn, drawn.subplots(rows, columns, **subplots)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a PNG, whole or not at all; its title goes into the file as well, for readers who cannot see it."""
    titles = [figure.get_suptitle(), *(axes.get_title(loc=loc) for axes in figure.axes for loc in ("left", "center"))]
    title = next((" ".join(title.split()) for title in titles if title), "")
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", metadata={"Software": None, "Title": title or None})
    write_atomic(path, buffer.getvalue())


def print_bench(output: Path, aims: int, missed: Sequence[str], before: str = "") -> None:
    """Closes a bench: the processor, how many aims were met, each that was missed, and where the files lie.

    Args:
        output: the folder of bench.json and bench.png.
        before: what the paper says before the processor, such as which kernels ran.
    """
    processor = cpu()
    print(f"{before}{processor['model']}, {processor['cores']} cores, {' '.join(processor['flags'])}")
    print("\n".join([f"{aims - len(missed)} of {aims} aims met", *(f"MISSED {words}" for words in missed)]))
    print(f"{output / 'bench.json'}, {output / 'bench.png'}")


def _drawn(rows: Iterable[Sequence[object]], columns: Sequence[str], look: box.Box) -> Table:
    cells = _cells(rows, columns)
    drawn = Table(box=look, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for column, right in zip(columns, _numeric(cells, len(columns)), strict=True):
        drawn.add_column(Text(column), justify="right" if right else "left")
    for line in cells:
        drawn.add_row(*map(Text, line))
    return drawn


def _cells(rows: Iterable[Sequence[object]], columns: Sequence[str]) -> list[list[str]]:
    cells = [[text(value) for value in row] for row in rows]
    for line in cells:
        if len(line) != len(columns):
            raise ValueError(f"a row of {len(line)} cells in a table of {len(columns)} columns: {line}")
    return cells


def _numeric(cells: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Which columns hold numbers and nothing else."""
    return [all(NUMBER.fullmatch(line[i]) for line in cells) for i in range(columns)]
