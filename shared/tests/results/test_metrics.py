"""The one form of ``metrics.json``: what goes in comes out, and a file of another form is refused in one line."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paperkit.errors import UserError
from paperkit.results.metrics import Claim, Metrics, Row


def example() -> Metrics:
    return Metrics(
        paper="spt",
        command="spt eval",
        seeds=[0, 1, 2],
        seconds=12.5,
        rows=[Row("SPT", "accuracy", [90.0, 92.0, 97.0], "%"), Row("SPT", "parameters", [75658])],
        claims=[Claim("SPT beats the head alone", True, True, "93.0 against 80.1"), Claim("faster", False, None)],
        extra={"curve": [1, 2.5, None], "name": "é"},
    )


def test_mean_and_sample_deviation() -> None:
    row = Row("SPT", "accuracy", [90, 92, 97], "%")
    assert row.mean == pytest.approx(93.0)
    assert row.spread == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert Row("SPT", "n", [3.0]).spread is None, "one value has no spread, which is not a spread of 0"
    with pytest.raises(ValueError, match=r"SPT / n has no values"):
        Row("SPT", "n", [])


def test_round_trip(tmp_path: Path) -> None:
    example().write(tmp_path / "metrics.json")
    assert Metrics.read(tmp_path / "metrics.json") == example()
    assert Metrics.read(tmp_path / "metrics.json").row("SPT", "parameters").values == [75658.0]
    with pytest.raises(KeyError, match=r"no row SPT / loss"):
        example().row("SPT", "loss")


def test_file_is_what_other_programs_expect(tmp_path: Path) -> None:
    example().write(tmp_path / "metrics.json")
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert set(content) == {
        *("schema", "paper", "command", "seeds", "seconds", "versions", "threads", "rows", "claims", "extra"),
    }
    assert content["rows"][0] == {
        **{"arm": "SPT", "metric": "accuracy", "values": [90.0, 92.0, 97.0], "unit": "%"},
        **{"mean": 93.0, "spread": pytest.approx(3.605551275)},
    }
    assert content["claims"][1] == {"text": "faster", "asserted": False, "held": None, "detail": ""}
    assert content["versions"]["torch"].startswith("2.")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_lacks_are_null(tmp_path: Path, value: float) -> None:
    metrics = example()
    metrics.rows = [Row("SPT", "loss", [1.0, value])]
    metrics.extra = {"curve": [value]}
    metrics.write(tmp_path / "metrics.json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert content["rows"][0]["values"] == [1.0, None]
    assert content["rows"][0]["mean"] is None
    assert content["extra"] == {"curve": [None]}
    row = Metrics.read(tmp_path / "metrics.json").rows[0]
    assert math.isnan(row.values[1])
    assert math.isnan(row.mean)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "missing": (lambda c: c.pop("seeds"), "'seeds' is missing"),
    "unknown": (lambda c: c.update(colour=1), "the file has an unknown key 'colour'"),
    "schema": (lambda c: c.update(schema=2), "schema 2 is not 1"),
    "type": (lambda c: c.update(seconds="3"), "seconds is str, not int or float"),
    "bool": (lambda c: c.update(threads=True), "threads is bool, not int"),
    "seed": (lambda c: c["seeds"].append("1"), "a seed is str"),
    "mean": (lambda c: c["rows"][0].update(mean=94.0), "mean 94.0 of SPT / accuracy does not follow from its values"),
    "spread": (lambda c: c["rows"][0].update(spread=0.0), "spread 0.0 of SPT / accuracy does not follow"),
    "hidden spread": (lambda c: c["rows"][0].update(spread=None), "spread nan of SPT / accuracy does not follow"),
    "no values": (lambda c: c["rows"][0].update(values=[]), "has no values"),
    "huge": (lambda c: c["rows"][0].update(values=[10**400]), "too large"),
    "value": (lambda c: c["rows"][0].update(values=["1"]), "a value is str"),
    "row": (lambda c: c["rows"].append(3), "a row is int, not dict"),
    "row key": (lambda c: c["rows"][0].pop("unit"), "'unit' is missing"),
    "claim": (lambda c: c["claims"][0].update(held="yes"), "a claim's held is str, not bool or null"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_other_form(tmp_path: Path, case: str) -> None:
    change, message = CHANGES[case]
    example().write(tmp_path / "metrics.json")
    content = json.loads((tmp_path / "metrics.json").read_text())
    change(content)
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"metrics.json have another form than expected: .*{message}") as caught:
        Metrics.read(tmp_path / "metrics.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1]", b"null"])
def test_no_metrics_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(UserError, match=r"are damaged|another form"):
        Metrics.read(tmp_path / "metrics.json")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results at .*metrics.json; run the evaluation first"):
        Metrics.read(tmp_path / "metrics.json")
    with pytest.raises(UserError, match=r"cannot read the results .*: Is a directory"):
        Metrics.read(tmp_path)
