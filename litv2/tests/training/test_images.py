"""The image engine through its command: killed and resumed, evaluated, drawn, predicting."""

import pytest
from made import LIGHTNING, EngineCases, World, full_disk, here, one_line, write_images  # noqa: F401
from PIL import Image

from paperkit.results.metrics import Metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("images")
    kill = LIGHTNING.format(module="images", name="ImageTraining")
    diverge = ["--recipe.lr", "1e30", "--recipe.warmup_epochs", "0"]
    return World(
        folder, write_images(folder), kill, "model/model.safetensors", "--data.root {}", "it should hold train", diverge
    )


class TestEngine(EngineCases):
    """Of images."""


def test_a_run_and_its_weights_evaluate_alike(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run = world.run("whole")
    trained = Metrics.read(run / "metrics.json").row("last", "val/acc1")
    assert here("eval", "--root", world.folder / "runs", "--ckpt", run) == 0
    assert "test/acc1" in capsys.readouterr().out
    metrics = Metrics.read(run / "metrics.json")
    assert metrics.row("last", "val/acc1") == trained
    words = ["--config", world.config, "--ckpt", run / "model", "--output", world.folder / "alone"]
    assert here("eval", "--root", world.folder / "runs", *words) == 0
    alone = Metrics.read(world.folder / "alone" / "metrics.json")
    assert alone.row("last", "test/acc1").values == metrics.row("last", "test/acc1").values


def test_figures_of_a_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (80, 90), (200, 10, 90)).save(world.folder / "image.png")
    assert here("figures", world.run("whole")) == 1
    assert "its figures need --image FILE" in one_line(capsys)
    words = ["--image", world.folder / "image.png", "--size", "64", "--output", world.folder / "drawn"]
    assert here("figures", world.run("whole"), *words) == 0
    names = ["attention_maps.png", "frequency_maps.png", "sampling_places.png"]
    assert sorted(path.name for path in (world.folder / "drawn").iterdir()) == names


def test_predict_takes_a_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (80, 90), (200, 10, 90)).save(world.folder / "image.png")
    assert here("predict", world.folder / "image.png", "--ckpt", world.run("whole"), "--size", "64") == 0
    assert "image.png: class " in capsys.readouterr().out
