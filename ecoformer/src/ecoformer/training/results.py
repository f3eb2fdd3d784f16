"""What training and evaluation on real data write into metrics.json, and print."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import table

ENERGY_UNIT = "G pJ"


def record(
    folder: Path,
    arm: str,
    found: Mapping[str, float],
    seed: int,
    seconds: float,
    energy: Iterable[tuple[str, float]] = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `folder/metrics.json`: percentages by metric, billions of pJ by name; other rows that it has stay."""
    rows = [Row(arm, metric, [value], "%") for metric, value in found.items()]
    rows += [Row(arm, name, [value], ENERGY_UNIT) for name, value in energy]
    fresh, more, path = {(row.arm, row.metric) for row in rows}, dict(extra or {}), folder / "metrics.json"
    if path.is_file():
        before = Metrics.read(path)
        rows = [row for row in before.rows if (row.arm, row.metric) not in fresh] + rows
        more = {**before.extra, **more}
    if rows:
        Metrics("ecoformer", [seed], seconds, rows, extra=more).write(path)


def told(title: str, found: Mapping[str, float], energy: Iterable[tuple[str, float]] = ()) -> None:
    """Print what an evaluation found."""
    lines = [(name, value, "%") for name, value in found.items()]
    table(lines + [(name, value, ENERGY_UNIT) for name, value in energy], ("metric", "value", "unit"), title)
