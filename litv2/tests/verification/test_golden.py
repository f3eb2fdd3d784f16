"""The authors' tensors: every kind recomputes, and every altered result is noticed."""

from pathlib import Path

import pytest

from litv2.models.classifier import LITv2
from litv2.verification.kinds import KINDS
from litv2.verification.networks import NETWORK
from paperkit.testing.golden import changed, check_altered_results_fail, check_verifies, each_golden, verified
from paperkit.verification.verify import ReferenceFile

FOLDER = Path(__file__).parents[1] / "golden"


@each_golden(FOLDER)
def test_matches_reference(path: Path) -> None:
    check_verifies(path, KINDS)


@each_golden(FOLDER)
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    """The largest entry of a result tensor moved by a thousandth of it (or of 1)."""
    check_altered_results_fail(path, KINDS, tmp_path, by=1e-3)


def test_altered_count_fails(tmp_path: Path) -> None:
    path = changed(FOLDER / "block_hilo.safetensors", tmp_path, config=lambda config: config.update(flops=56833.0))
    good, printed = verified(path, KINDS)
    assert not good and "FAIL  config.flops" in printed


@pytest.mark.parametrize("option", ["colour", "act"])
def test_unknown_option_is_named(option: str, tmp_path: Path) -> None:
    path = changed(FOLDER / "conv_ffn.safetensors", tmp_path, config=lambda config: config.update({option: "red"}))
    good, printed = verified(path, KINDS)
    assert not good and option in printed


def test_float32_forward_is_close() -> None:
    """`verify` works in float64; the float32 path that users run stays within 3e-5 of the authors' outputs."""
    file = ReferenceFile.read(FOLDER / "litv2_tiny_all_hilo.safetensors", KINDS)
    model = LITv2(**{key: file.config[key] for key in NETWORK if key in file.config})
    model.load_state_dict(file.state)
    logits, reference = model.eval()(file.inputs["image_64"]), file.outputs["logits_64"]
    assert (logits - reference).abs().max() <= 3e-5 * reference.abs().max()


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("optim_schedule", "epochs", 10**5),
        ("optim_schedule", "iters_per_epoch", 10**5),
        ("optim_schedule", "epochs", 900),  # within the bounds, but out.lr has 61 rows
        ("litv2_tiny_all_hilo", "depths", [10**5, 1, 2, 1]),
        ("macs", "models", [dict(img=224, embed_dim=96, depths=[2, 2, 10**5, 2], num_heads=[3, 6, 12, 24])]),
    ],
)
def test_a_file_cannot_ask_for_endless_work(name: str, option: str, value: object, tmp_path: Path) -> None:
    path = changed(FOLDER / f"{name}.safetensors", tmp_path, config=lambda config: config.update({option: value}))
    good, printed = verified(path, KINDS)
    assert not good and ("the most that this kind takes" in printed or "one more than steps is right" in printed)
