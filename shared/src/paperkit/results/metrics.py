"""``metrics.json``: one form of result for all papers, which the report page of every paper reads.

A file holds rows (one arm, one metric, a value per seed, mean and spread) and claims (a sentence of the paper, and
whether it held here). Numbers that are not finite stand as ``null``, since JSON knows no other form.
"""

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.results.command_line import command_line
from paperkit.results.environment import library_versions, torch_threads

SCHEMA = 1


@dataclass
class Row:
    """One number of the result table.

    Attributes:
        arm: what was run: the method's name, or a baseline's.
        metric: what was measured, for example ``accuracy``.
        values: one per seed, in the order of the file's seeds; a single one where seeds do not matter (parameters).
        unit: of the values: ``%``, ``s``, ``MiB``, or empty.
    """

    arm: str
    metric: str
    values: list[float]
    unit: str = ""

    def __post_init__(self) -> None:
        self.values = [float(value) for value in self.values]
        if not self.values:
            raise ValueError(f"row {self.arm} / {self.metric} has no values")

    @property
    def mean(self) -> float:
        """Mean over the seeds; nan if one of them is."""
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds (n - 1); None for a single value, which has no spread."""
        if len(self.values) < 2:
            return None
        return statistics.stdev(self.values) if all(map(math.isfinite, self.values)) else math.nan


@dataclass
class Claim:
    """A sentence about the result, and whether it held.

    Attributes:
        text: the sentence, as a reader of the table would say it.
        asserted: True if a test fails when it does not hold; False if it is only reported.
        held: whether it held; None if this run cannot tell.
        detail: the numbers behind it.
    """

    text: str
    asserted: bool
    held: bool | None
    detail: str = ""


@dataclass
class Metrics:
    """The content of one ``metrics.json``.

    Attributes:
        paper: name of the paper's folder.
        seeds: seeds of the runs behind the rows.
        seconds: wall time of the whole command.
        rows, claims: the result.
        extra: what only this paper reports (curves, settings); any JSON value.
        command: the command line that made it, as a user would type it; filled in by itself, as are versions and
            threads.
    """

    paper: str
    seeds: list[int]
    seconds: float
    rows: list[Row]
    claims: list[Claim] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    command: str = field(default_factory=command_line)
    versions: dict[str, str] = field(default_factory=library_versions)
    threads: int = field(default_factory=torch_threads)

    def row(self, arm: str, metric: str) -> Row:
        """The row of one arm and metric; KeyError if there is none."""
        for row in self.rows:
            if (row.arm, row.metric) == (arm, metric):
                return row
        raise KeyError(f"no row {arm} / {metric}")

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all."""
        content = {"schema": SCHEMA, **asdict(self)}
        for entry, row in zip(content["rows"], self.rows, strict=True):
            entry.update(mean=row.mean, spread=row.spread)
        write_atomic(path, json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Metrics":
        """Reads and checks a file.

        Raises:
            UserError: if the file is missing, no JSON, of another form, or if a mean or spread does not follow from
                its values.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no results at {path}; run the evaluation first") from None
        except OSError as error:
            raise UserError(f"cannot read the results {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"the results {path} are damaged: {error}") from error
        try:
            return _parse(content)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"the results {path} have another form than expected: {reason}") from error


def _parse(content: Any) -> Metrics:
    """``content`` of a file as an object; KeyError, TypeError or ValueError say what is wrong with it."""
    _check(content, dict, "the file")
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']!r} is not {SCHEMA}")
    kinds: dict[str, Any] = {
        **{"paper": str, "command": str, "seeds": list, "seconds": (int, float), "rows": list, "claims": list},
        **{"extra": dict, "versions": dict, "threads": int},
    }
    _check_keys(content, {"schema", *kinds}, "the file")
    for key, kind in kinds.items():
        _check(content[key], kind, key)
    for seed in content["seeds"]:
        _check(seed, int, "a seed")
    fields = {key: content[key] for key in kinds}
    return Metrics(**{**fields, "rows": _parse_rows(content["rows"]), "claims": _parse_claims(content["claims"])})


def _parse_rows(entries: list[Any]) -> list[Row]:
    rows = []
    for entry in entries:
        _check(entry, dict, "a row")
        _check_keys(entry, {"arm", "metric", "values", "mean", "spread", "unit"}, "a row")
        for key in ("arm", "metric", "unit"):
            _check(entry[key], str, f"a row's {key}")
        _check(entry["values"], list, "a row's values")
        row = Row(entry["arm"], entry["metric"], [_number(value) for value in entry["values"]], entry["unit"])
        for key, told, follows in (("mean", entry["mean"], row.mean), ("spread", entry["spread"], row.spread)):
            told, follows = _number(told), math.nan if follows is None else follows
            both_open = not math.isfinite(told) and not math.isfinite(follows)
            if not both_open and not math.isclose(told, follows, rel_tol=1e-9, abs_tol=1e-12):
                raise ValueError(f"{key} {told} of {row.arm} / {row.metric} does not follow from its values")
        rows.append(row)
    return rows


def _parse_claims(entries: list[Any]) -> list[Claim]:
    for entry in entries:
        _check(entry, dict, "a claim")
        _check_keys(entry, {"text", "asserted", "held", "detail"}, "a claim")
        for key, kind in (("text", str), ("asserted", bool), ("held", (bool, type(None))), ("detail", str)):
            _check(entry[key], kind, f"a claim's {key}")
    return [Claim(**entry) for entry in entries]


def _check(value: Any, kind: Any, what: str) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise TypeError(f"{what} is {type(value).__name__}, not {names}")


def _check_keys(entry: dict[str, Any], keys: set[str], what: str) -> None:
    for key in sorted(keys - set(entry)):
        raise KeyError(key)
    for key in sorted(set(entry) - keys):
        raise ValueError(f"{what} has an unknown key {key!r}")


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    _check(value, (int, float), "a value")
    return float(value)


def _finite(value: Any) -> Any:
    """``value`` with every float that JSON cannot hold replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
