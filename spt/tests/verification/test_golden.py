"""The authors' own results, recomputed: every reference file that lies here, and that a wrong one is noticed."""

from pathlib import Path

import pytest
import torch

from paperkit.errors import UserError
from paperkit.testing.golden import (
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    each_golden,
    golden_files,
    verified,
)
from paperkit.verification.reference_file import ReferenceFile
from spt.models.selection_file import ALLOWED
from spt.verification.kinds import KINDS

GOLDEN = Path(__file__).parents[1] / "golden"


@each_golden(GOLDEN)
def test_matches_reference(path: Path) -> None:
    check_verifies(path, KINDS)


@each_golden(GOLDEN, "*.safetensors")
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    check_altered_results_fail(path, KINDS, tmp_path)


@each_golden(GOLDEN, "*.safetensors")
def test_unknown_option_is_refused(path: Path, tmp_path: Path) -> None:
    check_unknown_option_is_refused(path, KINDS, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("tau", 1), ("params", 0.5), ("tuned_vectors", []), ("structured_params", 7.0)]
)
def test_altered_selection_result_fails(key: str, value: object, tmp_path: Path) -> None:
    path = golden_files(GOLDEN, "selection*")[0]
    twin = changed(path, tmp_path, config=lambda config: config["results"]["0.4"].update({key: value}))
    good, printed = verified(twin, KINDS)
    assert not good and f"0.4.{key}" in printed


def test_truncated_file_is_one_line(tmp_path: Path) -> None:
    path = golden_files(GOLDEN, "structured_lora.*")[0]
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:500])
    good, printed = verified(tmp_path / "cut.safetensors", KINDS)
    assert not good and sum(line.startswith("FAIL") for line in printed.splitlines()) == 1


def test_only_selection_files_may_hold_numpys_scalars(tmp_path: Path) -> None:
    """And torch's own list of safe classes is as it was, whatever was imported."""
    before = set(torch.serialization.get_safe_globals())
    check_verifies(golden_files(GOLDEN, "param_req*")[0], KINDS)
    assert set(torch.serialization.get_safe_globals()) == before and not before & set(ALLOWED)
    with pytest.raises(UserError, match="numpy"):
        ReferenceFile.read(golden_files(GOLDEN, "param_req*")[0], KINDS)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("sensitivity_tiny_vit", "batches", 10**9),
        ("sensitivity_tiny_vit", "mlp_ratio", 5000),
        ("train3_lora", "steps", 90_000),
        ("train3_lora", "depth", 1_000_000),
        ("merged_spt_lora", "depth", 5000),
    ],
)
def test_an_amount_of_work_is_bounded(name: str, key: str, value: int, tmp_path: Path) -> None:
    path = golden_files(GOLDEN, f"{name}.*")[0]
    good, printed = verified(changed(path, tmp_path, config=lambda config: config.update({key: value})), KINDS)
    assert not good and f"config.{key} is {value}; the most that this kind takes is" in printed


def test_both_selection_kinds_are_one_rule() -> None:
    assert KINDS["selection_from_gradients"] is KINDS["selection"]
