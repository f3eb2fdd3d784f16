"""The helpers for reference files catch a kind of check that is too weak, and a trace that moved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paperkit.testing.golden import (
    altered_results,
    changed,
    check_altered_results_fail,
    check_losses,
    check_unknown_option_is_refused,
    check_verifies,
    golden_files,
    read_golden,
)
from paperkit.verification.verify import Kind

X = torch.arange(6.0).reshape(2, 3)
KINDS = {"double": Kind(lambda file: {f"out.{n}": 2 * file.inputs["x"] for n in file.outputs}, 1e-6, options=())}
WEAK = {"double": Kind(KINDS["double"].compute, 0.1, options=())}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "golden"
    folder.mkdir()
    tensors = {"in.x": X, **{f"out.{n}": 2 * X for n in "abcdef"}}
    save_file(tensors, folder / "double.safetensors", {"kind": "double", "config": "{}"})
    (folder / "loss_trace.json").write_text("[1.0, 0.5]")
    (folder / "README.md").write_text("")
    return folder / "double.safetensors"


def test_the_files_that_are_meant(path: Path) -> None:
    assert golden_files(path.parent) == [path]
    with pytest.raises(ValueError, match="no reference file"):
        golden_files(path.parent, but=["double*"])


def test_a_good_kind_passes_and_a_weak_one_does_not(path: Path, tmp_path: Path) -> None:
    check_verifies(path, KINDS)
    check_altered_results_fail(path, KINDS, tmp_path)
    check_unknown_option_is_refused(path, KINDS, tmp_path)
    with pytest.raises(AssertionError, match=r"out\.a was altered"):
        check_altered_results_fail(path, WEAK, tmp_path)
    with pytest.raises(AssertionError, match="FAIL"):
        check_verifies(changed(path, tmp_path, tensors={"out.c": X}), KINDS)
    with pytest.raises(AssertionError, match="holds no result"):
        check_altered_results_fail(
            changed(path, tmp_path, tensors={f"out.{n}": None for n in "abcdef"}), KINDS, tmp_path
        )


def test_a_kind_that_takes_every_option_is_found(path: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_unknown_option_is_refused(path, {"double": Kind(KINDS["double"].compute, 1e-6)}, tmp_path)


def test_alterations(path: Path, tmp_path: Path) -> None:
    """First and last are among them; one entry moves, of every type."""
    altered = dict(altered_results(path))
    assert next(iter(altered)) == "out.a" and list(altered)[-1] == "out.f" and len(altered) == 4
    assert [int((value != 2 * X).sum()) for value in altered.values()] == [1] * 4
    kinds = {"out.n": torch.tensor([3, 4]), "out.t": torch.tensor([True, False]), "out.z": torch.zeros(2)}
    other = changed(path, tmp_path, tensors={**{f"out.{n}": None for n in "abcdef"}, **kinds})
    found = dict(altered_results(other))
    assert found["out.n"].tolist() == [3, 5] and found["out.t"].tolist() == [True, True]
    assert found["out.z"].abs().max() > 0.009 and read_golden(other)[1]["kind"] == "double"


def test_losses(path: Path, tmp_path: Path) -> None:
    trace = path.parent / "loss_trace.json"
    check_losses([1.00005, 0.5], trace)
    for found in ([1.0002, 0.5], [1.0], [1.0, 0.5, 0.25]):
        with pytest.raises(AssertionError):
            check_losses(found, trace)
    named = tmp_path / "named.json"
    named.write_text(json.dumps({"a": [1.0], "b": [2.0]}))
    check_losses({"a": [1.0], "b": [2.0]}, named)
    for other in ({"a": [1.0]}, {"a": [1.0], "b": [2.1]}):
        with pytest.raises(AssertionError):
            check_losses(other, named)
