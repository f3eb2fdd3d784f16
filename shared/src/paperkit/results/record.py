"""The numbers of a run on real data: rows of metrics.json beside those of earlier commands, and a table."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import table

Costs = Iterable[tuple[str, float, str]]
"""What an accuracy costs: name, value and unit each (operations, bytes, energy)."""


def record(
    folder: Path,
    paper: str,
    arm: str,
    found: Mapping[str, float],
    seed: int,
    seconds: float,
    costs: Costs = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes `folder/metrics.json`; other rows, and other entries of `extra`, that it holds already stay.

    Args:
        arm: of the rows. found: percentages by metric.
        seed: of the run. seconds: that it took.
    """
    rows = [Row(arm, metric, [value], "%") for metric, value in found.items()]
    rows += [Row(arm, name, [value], unit) for name, value, unit in costs]
    fresh, more, path = {(row.arm, row.metric) for row in rows}, dict(extra or {}), folder / "metrics.json"
    if path.is_file():
        before = Metrics.read(path)
        rows = [row for row in before.rows if (row.arm, row.metric) not in fresh] + rows
        more = {**before.extra, **more}
    if rows:
        Metrics(paper, [seed], seconds, rows, extra=more).write(path)


def told(title: str, found: Mapping[str, float], costs: Costs = ()) -> None:
    """Prints what an evaluation found."""
    table([(name, value, "%") for name, value in found.items()] + [*costs], ("metric", "value", "unit"), title)
