"""The survey's savings through `snnet train`: on, recorded in the run folder, and refused where they cannot work."""

from pathlib import Path

import pytest
import torch
import yaml
from made import CLASSES, SNNET, here, images_parser, named_vit, one_line, write_recipe

from paperkit.files.weights import read_checkpoint
from paperkit.testing.made_images import make_image_folder
from snnet.models.anchors import load_folder

TINY = [
    *("--seeds", "1", "--anchor_epochs", "1", "--joint_epochs", "1", "--measured_epochs", "[1]"),
    *("--scratch_every", "0", "--batch_size", "128"),
]
SWITCHES = [
    *("--savings.checkpointing", "true", "--savings.patch_drop", "0.25", "--ema.decay", "0.9"),
    *("--precision", "bf16-mixed", "--accumulate_grad_batches", "2"),
]


def test_switches_of_the_embedded_experiment(tmp_path: Path) -> None:
    SNNET.here("train", "--name", "run", *TINY, *SWITCHES, cwd=tmp_path)
    config = yaml.safe_load((tmp_path / "runs" / "snnet" / "run" / "config.yaml").read_text())
    assert config["savings"]["checkpointing"] is True and config["savings"]["patch_drop"] == 0.25
    assert config["ema"]["decay"] == 0.9
    assert (config["precision"], config["accumulate_grad_batches"]) == ("bf16-mixed", 2)
    assert "mean of all stitches" in SNNET.here("eval", cwd=tmp_path).out


PLAIN = ["--training.mixup", "0", "--training.cutmix", "0"]
RESNETS = ["--network.anchors", "[resnet18, resnet50]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switches")
    make_image_folder(folder / "images", CLASSES, per_class=8, size=40)
    path = write_recipe(folder / "recipe.yaml", folder / "images")
    recipe = yaml.safe_load(path.read_text())
    recipe["network"]["anchors"] = [{**named_vit(width), "dynamic_img_size": True} for width in (16, 32)]
    path.write_text(yaml.safe_dump(recipe))
    return folder


def test_switches_of_a_run_on_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sharpness, averaging and small images; what is kept is the average, the trained weights are beside it."""
    monkeypatch.chdir(folder)
    words = ["--savings.sam_rho", "0.05", "--ema.decay", "0.5", "--data.size_schedule", "{0: 16, 1: 32}"]
    assert here("train", "--config", "recipe.yaml", "--name", "run", *words) == 0, capsys.readouterr().err
    run = folder / "runs" / "snnet" / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["savings"]["sam_rho"] == 0.05 and config["ema"]["decay"] == 0.5
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    network, _ = load_folder(run / "best")
    key = "anchors.0.blocks.0.mlp.fc1.weight"
    weight = network.state_dict()[key]
    assert torch.equal(weight, checkpoint["state_dict"][f"network.{key}"])
    assert not torch.equal(weight, checkpoint["current_model_state"][f"network.{key}"])


def test_the_recommended_set_comes_after_a_recipe() -> None:
    root = Path(__file__).parents[3]
    recipe, fast = root / "snnet" / "configs" / "imagenet" / "deit.yaml", root / "shared" / "configs" / "fast_vit.yaml"
    arguments = images_parser().parse_args(["--config", str(recipe), "--config", str(fast)])
    assert arguments.trainer.precision == "bf16-mixed" and arguments.savings.patch_drop == 0.25
    assert arguments.trainer.max_epochs == 50 and arguments.data.repeats == 3  # the rest is the recipe's


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--savings.compile", "true"], "compile True is not for this method: every stitch is a graph of its own"),
        (["--savings.keep_hardest", "0.5"], "keep_hardest 0.5 and mixup or CutMix"),
        (
            ["--savings.sam_rho", "0.1", "--trainer.accumulate_grad_batches", "2"],
            "sam_rho 0.1 and accumulate_grad_batches 2",
        ),
        (["--trainer.precision", "16-mixed"], "precision 16-mixed and a CPU"),
        (["--trainer.strategy", "fsdp", "--ema.decay", "0.9"], "strategy fsdp"),
        (["--data.size_schedule", "{0: 16, 2: 24}"], "size_schedule {0: 16, 2: 24} must end with the full size, 32"),
        (["--data.size_schedule", "{0: 16, 3: 32}"], "size_schedule reaches the full size in epoch 3 of 3"),
        (
            [*PLAIN, "--savings.keep_hardest", "0.5", "--training.stitches_per_step", "2"],
            "keep_hardest 0.5 and stitches_per_step 2",
        ),
        ([*PLAIN, "--savings.keep_hardest", "0.5", "--network.split_bn", "2"], "keep_hardest 0.5 and split_bn 2"),
        (["--optim.agc", "0.01", "--trainer.gradient_clip_val", "1"], "agc 0.01 and gradient_clip_val 1"),
        (["--optim.name", "speed"], "optimizer 'speed' is unknown to timm"),
        (["--optim.name", "lion", "--optim.fused", "true"], "optimizer lion has no fused form"),
        (["--optim.layer_decay", "0.7"], "layer_decay builds its own parameter groups"),
        ([*RESNETS, "--savings.patch_drop", "0.5"], "patch_drop 0.5 needs a plain ViT"),
        ([*RESNETS, "--savings.attention", "eager"], "attention eager: SNNet has no fused attention"),
        (
            [
                "--data.size_schedule",
                "{0: 16, 1: 32}",
                "--training.distillation",
                "hard",
                "--teacher.name",
                "deit_tiny_patch16_224",
            ],
            "size_schedule does not go together with this VisionTransformer",
        ),
    ],
)
def test_refused_before_there_is_a_run_folder(
    words: list[str], line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert here("train", "--config", "recipe.yaml", "--name", "refused", *words) == 1
    assert line in one_line(capsys)
    assert not (folder / "runs" / "snnet" / "refused").exists()
