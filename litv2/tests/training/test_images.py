"""The image engine through its command: killed and resumed, evaluated, drawn, predicting; and the survey's savings, of
which some change no result, some do, and some are refused.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from made import LITV2, SHRINK, EngineCases, World, full_disk, write_images, write_yaml  # noqa: F401
from PIL import Image
from torch import Tensor

from litv2.models.classifier import LITv2
from litv2.models.images import read_images
from paperkit.data.images import ImageData
from paperkit.data.layouts import imagenet_classes
from paperkit.data.pictures import read_picture
from paperkit.files.weights import read_checkpoint, read_weights
from paperkit.results.metrics import Metrics
from paperkit.testing.made_images import make_image_folder
from paperkit.training.savings import Savings
from paperkit.training.switches import apply


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (80, 90), (200, 10, 90)).save(folder / "image.png")
    step, diverge = "litv2.training.images:ImageTraining.training_step", ["--recipe.lr", "1e30"]
    diverge += ["--recipe.warmup_epochs", "0"]
    data = ["--data.root", ""]
    kill = "litv2.training.images:ImageTraining.validation_step", 1
    file, lacking = "model/model.safetensors", "it should hold train"
    return World(folder, write_images(folder), step, kill, file, data, lacking, diverge)


class TestEngine(EngineCases):
    """Of images."""


def test_a_run_and_its_weights_evaluate_alike(world: World) -> None:
    run = world.run("whole")
    trained = Metrics.read(run / "metrics.json").row("last", "val/acc1")
    assert "test/acc1" in LITV2.here("eval", "--ckpt", run, cwd=world.folder).out
    metrics = Metrics.read(run / "metrics.json")
    assert metrics.row("last", "val/acc1") == trained
    LITV2.here("eval", "--config", world.config, "--ckpt", run / "model", "--output", "alone", cwd=world.folder)
    alone = Metrics.read(world.folder / "alone" / "metrics.json")
    assert alone.row("last", "test/acc1").values == metrics.row("last", "test/acc1").values


def test_figures_of_a_run(world: World) -> None:
    run = world.run("whole")
    assert "its figures need --image FILE" in LITV2.refused("figures", run, cwd=world.folder)
    LITV2.here("figures", run, "--image", "image.png", "--size", "64", "--output", "drawn", cwd=world.folder)
    names = ["attention_maps.png", "frequency_maps.png", "sampling_places.png"]
    assert sorted(path.name for path in (world.folder / "drawn").iterdir()) == names


@pytest.mark.parametrize("place", ["", "model", "best"])
def test_predict_names_the_classes_of_the_run(place: str, world: World) -> None:
    out = LITV2.here("predict", "image.png", "--ckpt", world.run("whole") / place, "--size", "64", cwd=world.folder).out
    first, second = re.fullmatch(r"image\.png: (\w+) [\d.]+ %, (\w+) [\d.]+ %\n", out).groups()
    assert {first, second} == {"n01440764", "n01443537"}


def test_an_own_folder_has_its_own_head(world: World, tmp_path: Path) -> None:
    """Without `num_classes` a folder of three classes makes a head of three, with the folder's names."""
    make_image_folder(tmp_path / "own", ["ant", "bee", "cow"], per_class=2)
    content = yaml.safe_load(world.config.read_text())
    del content["data"]["num_classes"]
    content["data"]["root"], content["recipe"]["epochs"] = str(tmp_path / "own"), 2
    config = write_yaml(tmp_path / "own.yaml", content)
    LITV2.here("train", "--config", config, "--name", "own", "--trainer.max_steps", "1", cwd=tmp_path)
    run = tmp_path / "runs" / "litv2" / "own"
    assert json.loads((run / "classes.json").read_text()) == ["ant", "bee", "cow"]
    assert LITv2.from_pretrained(run / "model").num_classes == 3
    out = LITV2.here("predict", world.folder / "image.png", "--ckpt", run, "--size", "64", cwd=tmp_path).out
    assert all(name in out for name in ("ant", "bee", "cow"))
    words = ["eval", "--ckpt", run, "--data.root", world.folder / "images"]
    assert "2 of the 2 classes of" in LITV2.refused(*words, cwd=tmp_path)


def test_a_head_of_imagenet_meets_other_folders(world: World, tmp_path: Path) -> None:
    """A part of ImageNet's classes is told from all 1,000; other classes are refused; `predict` names animals."""
    LITv2(**{**SHRINK, "num_classes": 1000}).save_pretrained(tmp_path / "weights")
    content = yaml.safe_load(world.config.read_text())
    del content["data"]["num_classes"]
    config = write_yaml(tmp_path / "part.yaml", content)
    words = ["eval", "--config", config, "--ckpt", "weights", "--output", "found"]
    LITV2.here(*words, cwd=tmp_path)
    model = LITv2.from_pretrained(tmp_path / "weights")
    pictures = sorted((world.folder / "images" / "val").rglob("*.JPEG"))
    transform = ImageData(str(world.folder / "images"), input_size=64).eval_transform
    with torch.no_grad():
        best = model(torch.stack([transform(read_picture(path)) for path in pictures])).argmax(1)
    right = [index == imagenet_classes().index(path.parent.name) for index, path in zip(best, pictures, strict=True)]
    found = Metrics.read(tmp_path / "found" / "metrics.json").row("last", "test/acc1").values[0]
    assert found == pytest.approx(100 * sum(map(bool, right)) / len(right))
    make_image_folder(tmp_path / "own", ["ant", "bee"], per_class=1)
    line = LITV2.refused(*words, "--data.root", "own", cwd=tmp_path)
    assert "2 of the 2 classes of own are not among the 1000 of ImageNet (ant, bee)" in line
    out = LITV2.here("predict", world.folder / "image.png", "--ckpt", "weights", "--size", "64", cwd=tmp_path).out
    assert "class " not in out and re.search(r"[a-z]{3}", out.partition(": ")[2])


def test_a_turned_picture_is_upright(tmp_path: Path) -> None:
    """As EXIF notes it; and 16-bit grey is grey, not white."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:16] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    image.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).rotate(-90).save(tmp_path / "upright.png")
    Image.fromarray(np.full((64, 64), 32768, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (64, 64), (128, 128, 128)).save(tmp_path / "grey.png")
    turned, upright, deep, grey = read_images(
        [str(tmp_path / f"{n}.png") for n in ("turned", "upright", "deep", "grey")], 64
    )
    assert torch.equal(turned, upright) and torch.equal(deep, grey)


def test_a_broken_picture_is_named(world: World, tmp_path: Path) -> None:
    """Out of a worker process too, in training and in `predict`."""
    root = make_image_folder(tmp_path / "images", per_class=4)
    broken = root / "train" / "n01440764" / "n01440764_1.JPEG"
    broken.write_bytes(broken.read_bytes()[:700])
    words = ["train", "--config", world.config, "--data.root", root, "--data.num_workers", "2"]
    line = LITV2.child(*words, cwd=tmp_path, code=1).line
    assert "cannot read image" in line and broken.name in line and len(line) < 300
    assert broken.name in LITV2.refused("predict", broken, "--ckpt", world.run("whole"), cwd=tmp_path)


def test_home_is_expanded(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` after an equals sign, where no shell expands it, and in a config."""
    monkeypatch.setenv("HOME", str(world.folder))
    words = ["--output", "found", "--engine", "images", "--data.num_workers=0", "--data.input_size=64"]
    LITV2.here("eval", "--ckpt=~/runs/litv2/whole", "--data.root=~/images", "--output=found", cwd=tmp_path)
    content = yaml.safe_load(world.config.read_text())
    content["data"]["root"] = "~/images"
    config = write_yaml(tmp_path / "home.yaml", content)
    place = "~/runs/litv2/whole/model"
    LITV2.here("eval", "--config", config, f"--ckpt={place}", *words, cwd=tmp_path)
    assert not (tmp_path / "~").exists()


def trained(world: World, name: str, *words: str) -> dict[str, Tensor]:
    """The last weights of another run of the same four steps."""
    world.train("--name", name, *words)
    return world.weights(name)


def difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """But for weights whose gradient is rounding at the start, which AdamW follows: the bias before a BatchNorm, and
    queries and keys of a softmax that is still flat.
    """
    left_out = ("dconv.bias", "l_q", "l_kv", "h_qkv")
    keys = [key for key in one if one[key].is_floating_point() and not any(part in key for part in left_out)]
    return max((one[key] - two[key]).abs().max().item() for key in keys)


@pytest.fixture(scope="module")
def plain(world: World) -> dict[str, Tensor]:
    return world.weights("whole")


@pytest.mark.parametrize("name", ["checkpointing", "channels_last"])
def test_same_weights(name: str, world: World, plain: dict[str, Tensor]) -> None:
    """Another gradient would move a weight elsewhere by up to the rate, 8e-4, at every step."""
    assert difference(plain, trained(world, name, f"--savings.{name}", "true")) < 2e-4


@pytest.mark.parametrize(
    "words",
    [["--savings.sam_rho", "0.05"], ["--recipe.optimizer", "lamb"], ["--data.size_schedule", "{0: 32, 1: 64}"],
     ["--savings.keep_hardest", "0.5", "--mixing.mixup", "0", "--mixing.cutmix", "0"], ["--ema.decay", "0.5"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_another_training_that_ends(words: list[str], world: World, plain: dict[str, Tensor]) -> None:
    weights = trained(world, words[0].strip("-"), *words)
    assert all(value.isfinite().all() for value in weights.values())
    assert 1e-6 < difference(plain, weights) < 1


def test_the_average_is_what_is_kept(world: World, plain: dict[str, Tensor]) -> None:
    """Nearer to the start than the last weights are, and the checkpoint holds both."""
    trained(world, "average", "--ema.decay", "0.5")
    run = world.run("average")
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
def test_refused(words: list[str], message: str, world: World) -> None:
    assert message in LITV2.refused("train", "--config", "images.yaml", "--root", "refused", *words, cwd=world.folder)
    assert not (world.folder / "refused").exists(), "nothing is left behind"


def test_eager_attention_is_the_same_network() -> None:
    model = LITv2(**{**SHRINK, "local_ws": (0, 0, 3, 2)}, num_classes=2).double().eval()
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    fused = model(image)
    apply(model, Savings(attention="eager"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # nothing may call it any more
        torch.testing.assert_close(model(image), fused)
