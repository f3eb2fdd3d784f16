"""The survey's savings in a classification run: some change no result, some do, and some are refused."""

from pathlib import Path

import pytest
import torch
from made import LITV2, SHRINK, write_images
from torch import Tensor

from litv2.models.classifier import LITv2
from paperkit.files.weights import read_checkpoint, read_weights
from paperkit.training.savings import Savings
from paperkit.training.switches import apply


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("savings")
    write_images(folder)
    return folder


def trained(folder: Path, name: str, *words: str) -> dict[str, Tensor]:
    """The last weights of a run of four steps at a rate that moves them."""
    common = ["--recipe.lr", "0.1", "--recipe.warmup_epochs", "0"]
    LITV2.here("train", "--config", "images.yaml", "--name", name, *common, *words, cwd=folder)
    return read_weights(folder / "runs" / "litv2" / name / "model" / "model.safetensors")


def difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """But for weights whose gradient is rounding at the start, which AdamW follows: the bias before a BatchNorm, and
    queries and keys of a softmax that is still flat.
    """
    left_out = ("dconv.bias", "l_q", "l_kv", "h_qkv")
    keys = [key for key in one if one[key].is_floating_point() and not any(part in key for part in left_out)]
    return max((one[key] - two[key]).abs().max().item() for key in keys)


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Tensor]:
    return trained(folder, "plain")


@pytest.mark.parametrize("name", ["checkpointing", "channels_last"])
def test_same_weights(name: str, folder: Path, plain: dict[str, Tensor]) -> None:
    """Another gradient would move a weight elsewhere by up to the rate, 8e-4, at every step."""
    assert difference(plain, trained(folder, name, f"--savings.{name}", "true")) < 2e-4


@pytest.mark.parametrize(
    "words",
    [["--savings.sam_rho", "0.05"], ["--recipe.optimizer", "lamb"], ["--data.size_schedule", "{0: 32, 1: 64}"],
     ["--savings.keep_hardest", "0.5", "--mixing.mixup", "0", "--mixing.cutmix", "0"], ["--ema.decay", "0.5"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_another_training_that_ends(words: list[str], folder: Path, plain: dict[str, Tensor]) -> None:
    weights = trained(folder, words[0].strip("-"), *words)
    assert all(value.isfinite().all() for value in weights.values())
    assert 1e-6 < difference(plain, weights) < 1


def test_the_average_is_what_is_kept(folder: Path, plain: dict[str, Tensor]) -> None:
    """Nearer to the start than the last weights are, and the checkpoint holds both."""
    trained(folder, "average", "--ema.decay", "0.5")
    run = folder / "runs" / "litv2" / "average"
    kept = read_weights(run / "model" / "model.safetensors")["head.weight"]
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert torch.equal(checkpoint["state_dict"]["network.head.weight"], kept)
    assert torch.equal(LITv2.from_pretrained(run / "model").head.weight, kept)
    assert not torch.allclose(kept, plain["head.weight"], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--savings.patch_drop", "0.25"], "patch_drop 0.25 is not for this method: windows, pooling and merging"),
        (["--savings.keep_hardest", "0.5"], "keep_hardest 0.5 and mixup or CutMix"),
        (["--savings.sam_rho", "0.05", "--trainer.accumulate_grad_batches", "2"], "sam_rho 0.05 and accumulate"),
        (["--trainer.precision", "16-mixed"], "precision 16-mixed and a CPU"),
        (["--data.size_schedule", "{0: 16, 1: 64}"], "the smallest is 32 x 32"),
        (["--recipe.optimizer", "speed"], "optimizer 'speed' is unknown to timm"),
        (["--network.name", "litv1_s", "--data.size_schedule", "{0: 32, 1: 64}"], "does not go together with"),
    ],
)
def test_refused(words: list[str], message: str, folder: Path) -> None:
    assert message in LITV2.refused("train", "--config", "images.yaml", "--root", "refused", *words, cwd=folder)
    assert not (folder / "refused").exists(), "nothing is left behind"


def test_eager_attention_is_the_same_network() -> None:
    model = LITv2(**{**SHRINK, "local_ws": (0, 0, 3, 2)}, num_classes=2).double().eval()
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    fused = model(image)
    apply(model, Savings(attention="eager"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # nothing may call it any more
        torch.testing.assert_close(model(image), fused)
