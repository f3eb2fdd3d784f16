"""Rows that add to those of earlier commands, and take the place of their own older ones."""

from pathlib import Path

import pytest

from paperkit.results.metrics import Metrics
from paperkit.results.record import record, told


def test_rows_of_other_commands_stay(tmp_path: Path) -> None:
    record(tmp_path, "paper", "last", {"val/acc1": 50.0}, 3, 1.0, [("bytes", 2.0, "MB")], {"recipe": 1})
    record(tmp_path, "paper", "last", {"test/acc1": 40.0}, 3, 2.0, [("bytes", 4.0, "MB")], {"more": 2})
    record(tmp_path, "paper", "packed", {"test/acc1": 41.0}, 3, 2.0)
    found = Metrics.read(tmp_path / "metrics.json")
    rows = {(row.arm, row.metric): (row.mean, row.unit) for row in found.rows}
    assert rows == {
        ("last", "val/acc1"): (50.0, "%"), ("last", "bytes"): (4.0, "MB"), ("last", "test/acc1"): (40.0, "%"),
        ("packed", "test/acc1"): (41.0, "%"),
    }  # fmt: skip
    assert found.extra == {"recipe": 1, "more": 2} and found.seeds == [3]


def test_nothing_measured_writes_nothing(tmp_path: Path) -> None:
    record(tmp_path, "paper", "last", {}, 0, 1.0)
    assert not list(tmp_path.iterdir())


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    told("a run", {"test/acc1": 40.0}, [("bytes", 2.0, "MB")])
    out = capsys.readouterr().out
    assert "test/acc1" in out and "40" in out and "MB" in out
