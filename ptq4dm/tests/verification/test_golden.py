"""The authors' tensors: every kind recomputes, and every altered result is noticed."""

from pathlib import Path

import pytest
import torch

from paperkit.testing.golden import (
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    each_golden,
    read_golden,
    verified,
)
from ptq4dm.verification.kinds import KINDS

GOLDEN = Path(__file__).parents[1] / "golden"


@each_golden(GOLDEN)
def test_matches_reference(path: Path) -> None:
    check_verifies(path, KINDS)


@each_golden(GOLDEN)
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    # Behind quantised activations a few entries may be off by 5 %, so an alteration that must be seen is larger.
    few = path.stem in ("quant_unet", "reconstruction")
    check_altered_results_fail(path, KINDS, tmp_path, most=2 if few else 4, by=0.1)


@each_golden(GOLDEN)
def test_unknown_option_is_refused(path: Path, tmp_path: Path) -> None:
    check_unknown_option_is_refused(path, KINDS, tmp_path)


def test_kinds_are_all_there() -> None:
    files = {path.stem.replace("unet_bed", "unet") for path in GOLDEN.glob("*.safetensors")}
    assert files == KINDS.keys()


@pytest.mark.parametrize("key", ["sd.res.in_layers.2.act_quantizer.delta", "out.res.wa", "out.res.w"])
def test_altered_block_fails(key: str, tmp_path: Path) -> None:
    path = GOLDEN / "quant_blocks.safetensors"
    value = read_golden(path)[0][key] * 1.06
    good, printed = verified(changed(path, tmp_path, tensors={key: value}), KINDS)
    assert not good and f"FAIL  {key}" in printed


def test_other_layers_than_the_rule_says_are_noticed(tmp_path: Path) -> None:
    path = GOLDEN / "quant_blocks.safetensors"
    altered = changed(path, tmp_path, config=lambda c: c["res"]["quantised"].append("skip_connection"))
    good, printed = verified(altered, KINDS)
    assert not good and "skip_connection" in printed


@pytest.mark.parametrize(
    ("stem", "change", "word"),
    [
        ("uniform_affine_quantizer", lambda c: c["w_tensor_mse2"].update(n_bits=9), "2 to 8"),
        ("uniform_affine_quantizer", lambda c: c["w_tensor_mse2"].update(scale_method="best"), "best"),
        ("quant_module", lambda c: c.update(linear="__import__('os').getcwd()"), "linear"),
        ("quant_blocks", lambda c: c["btb"].update(kind="Resnet"), "Resnet"),
        ("reconstruction", lambda c: c.update(model="another"), "model"),
    ],
    ids=["bits", "method", "code", "block", "model"],
)
def test_strange_options_are_one_line(stem: str, change: object, word: str, tmp_path: Path) -> None:
    good, printed = verified(changed(GOLDEN / f"{stem}.safetensors", tmp_path, config=change), KINDS)  # type: ignore[arg-type]
    assert not good and word in printed and "Traceback" not in printed


def test_steps_across_a_rounding_are_allowed(tmp_path: Path) -> None:
    """One of a thousand fake-quantised values may lie on the next step; a second one may not."""
    from ptq4dm.verification.quantizers import close

    wanted = torch.rand(2000) + 1
    found = wanted.clone()
    found[3] += 0.1
    assert (check := close(found, wanted, 1e-5, odd=5e-4, odd_by=0.06)).error <= check.tolerance
    found[4] += 0.1
    assert close(found, wanted, 1e-5, odd=5e-4, odd_by=0.06).error > 1e-5
    assert close(found[:2], wanted, 1e-5).error == float("inf")
