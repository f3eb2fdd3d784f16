"""The reference tensors: every kind recomputes, and every altered result is noticed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from paperkit.testing.golden import (
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    each_golden,
    verified,
)
from stpt.verification.kinds import KINDS

GOLDEN = Path(__file__).parents[1] / "golden"


@each_golden(GOLDEN)
def test_matches_reference(path: Path) -> None:
    check_verifies(path, KINDS)


@each_golden(GOLDEN)
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    check_altered_results_fail(path, KINDS, tmp_path)


@each_golden(GOLDEN)
def test_unknown_option_is_refused(path: Path, tmp_path: Path) -> None:
    check_unknown_option_is_refused(path, KINDS, tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("boundary_pooling", lambda c: c.update(K=3), "config.K is 3; the tensors have 14"),
        ("proposal_branch", lambda c: c.update(groups=5), "64 channels are not a multiple of 5 groups"),
        ("proposal_branch", lambda c: c.update(in_channels=32), "config.in_channels is 32; the tensors have 64"),
        ("loss_thumos", lambda c: c.update(kind="anet"), "config.kind is anet; the tensors have thumos"),
        ("loss_thumos", lambda c: c.update(cases=4), "config.cases is 4; the tensors have 3"),
        ("loss_thumos", lambda c: c.update(weights=[1, 2]), "config.weights is [1, 2]"),
        ("loss_thumos", lambda c: c["focal"].update(alpha=1), "unknown option 'alpha' in focal"),
        ("loss_thumos", lambda c: c.update(overlap_thresh=0.99), "FAIL  out.c0.loss_prop_l"),
        ("loss_anet", lambda c: c.pop("clip_length"), "missing option clip_length"),
        ("loss_parts", lambda c: c["triplet"].update(margin=2), "FAIL  out.triplet"),
        ("loss_parts", lambda c: c["triplet"].update(swap=True), "unknown option 'swap' in triplet"),
    ],
)
def test_options_count(file: str, change: Any, message: str, tmp_path: Path) -> None:
    good, printed = verified(changed(GOLDEN / f"{file}.safetensors", tmp_path, config=change), KINDS)
    assert not good and message in printed, printed


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("boundary_pooling", {"in.cotangent": None}, "missing tensor in.cotangent"),
        ("proposal_branch", {"sd.roi_conv.1.bias": None}, "roi_conv.1.bias"),
        ("loss_thumos", {"in.c0.target.1": None}, "missing tensor in.c0.target.1"),
        ("loss_thumos", {"in.c1.target.1": torch.zeros(1, 3)}, "case 1 has targets for 2 clips; the outputs are of 1"),
        ("loss_thumos", {"in.c1.target.0": torch.tensor([[0.1, 0.2, 21.0]])}, "a label that is none of 1 to 20"),
        ("loss_anet", {"in.priors": torch.rand(189, 1)}, "priors without a column of levels"),
        ("loss_parts", {"out.more": torch.zeros(1)}, "FAIL  out.more  not computed"),
    ],
)
def test_tensors_count(file: str, change: Any, message: str, tmp_path: Path) -> None:
    good, printed = verified(changed(GOLDEN / f"{file}.safetensors", tmp_path, tensors=change), KINDS)
    assert not good and message in printed, printed
