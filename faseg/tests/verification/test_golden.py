"""The authors' tensors: every kind recomputes, and every altered result is noticed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from faseg.verification.kinds import KINDS
from paperkit.testing.golden import (
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    each_golden,
    verified,
)

GOLDEN = Path(__file__).parents[1] / "golden"


@each_golden(GOLDEN, but=("loss_trace*",))
def test_matches_reference(path: Path) -> None:
    check_verifies(path, KINDS)


@each_golden(GOLDEN, "*.safetensors")
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    check_altered_results_fail(path, KINDS, tmp_path, by=2e-3)


@each_golden(GOLDEN, "*.safetensors")
def test_unknown_option_is_refused(path: Path, tmp_path: Path) -> None:
    check_unknown_option_is_refused(path, KINDS, tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("decoder_default_omega", lambda c: c.update(pre_norm=True), "pre_norm true is not computed"),
        ("decoder_default_omega", lambda c: c.update(dec_layers=65), "the most that this kind takes is 64"),
        ("decoder_default_omega", lambda c: c.update(nheads=3), "3 heads do not divide 16 channels"),
        ("decoder_default_omega", lambda c: c.update(size32=[2, 8]), "config.size32 is [2, 8]; the tensors have"),
        ("decoder_default_omega", lambda c: c.pop("omega_rate"), "missing option omega_rate"),
        ("hrca", lambda c: c.update(omega_rate=0), "omega 0: one in how many"),
        ("hrca", lambda c: c.update(num_windows=3), "config.num_windows is 3; the tensors have 2"),
        ("hrca", lambda c: c.update(size32=[3, 4]), "is not cut by a grid of 3x4"),
        ("prediction_heads", lambda c: c.update(pool_threshold=0.4), "pool_threshold 0.4"),
        ("decoder_layer", lambda c: c.update(tokens=21), "config.tokens is 21; the tensors have 20"),
    ],
)
def test_impossible_option_is_one_line(file: str, change: object, message: str, tmp_path: Path) -> None:
    good, printed = verified(changed(GOLDEN / f"{file}.safetensors", tmp_path, config=change), KINDS)
    assert not good and message in printed, printed


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("criterion", lambda c: c.update(batch=3), "config.batch is 3; the tensors have 2"),
        ("criterion", lambda c: c.update(num_classes=6), "config.num_classes is 6; the tensors have 5"),
        ("criterion", lambda c: c.update(target_size=[48, 32]), "config.target_size is [48, 32]"),
        ("msdeform_attn", lambda c: c.update(batch=3), "config.batch is 3"),
        ("semantic_inference", lambda c: c.update(image_size=[65, 31]), "image_size [65, 31] does not lie in"),
        ("pixel_decoder", lambda c: c.update(image=[96, 64]), "config.image is [96, 64]; the tensors have [64, 96]"),
    ],
)
def test_sizes_that_the_tensors_have_not_are_refused(file: str, change: object, message: str, tmp_path: Path) -> None:
    good, printed = verified(changed(GOLDEN / f"{file}.safetensors", tmp_path, config=change), KINDS)
    assert not good and message in printed, printed


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("decoder_default_omega", {"in.pos.2": None}, "missing tensor in.pos.2"),
        ("decoder_layer", {"in.cotangent": None}, "missing tensor in.cotangent"),
        ("dfpq", {"sd.more": torch.zeros(1)}, "unknown tensor sd.more"),
        ("decoder_layer", {"sd.more": torch.zeros(1)}, "unknown tensor sd.more"),
    ],
)
def test_missing_and_unknown_tensors_are_named(file: str, change: Any, message: str, tmp_path: Path) -> None:
    good, printed = verified(changed(GOLDEN / f"{file}.safetensors", tmp_path, tensors=change), KINDS)
    assert not good and message in printed, printed
