"""What training and evaluation on real data write into metrics.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import table


def record(folder: Path, arm: str, found: Mapping[str, float], seed: int, seconds: float, **extra: Any) -> None:
    """Write percentages by metric as rows of `arm`; rows of other metrics that stand there already are kept."""
    rows, file = [Row(arm, metric, [value], "%") for metric, value in found.items()], folder / "metrics.json"
    kept = Metrics.read(file) if file.is_file() else None
    if kept is not None:
        rows = [row for row in kept.rows if row.metric not in found] + rows
        extra = {**kept.extra, **extra}
    if rows:
        Metrics("litv2", [seed], seconds, rows, extra=extra).write(file)


def report(folder: Path, arm: str, title: str, found: Mapping[str, float], seed: int, seconds: float) -> None:
    """Print what an evaluation found, and record it."""
    table(list(found.items()), ("metric", "%"), title)
    record(folder, arm, found, seed, seconds)
    print(folder / "metrics.json")
