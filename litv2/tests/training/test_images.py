"""The image engine through its command: killed and resumed, evaluated, drawn, predicting."""

import pytest
from made import LITV2, EngineCases, World, full_disk, write_images  # noqa: F401
from PIL import Image

from paperkit.results.metrics import Metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (80, 90), (200, 10, 90)).save(folder / "image.png")
    step, diverge = "litv2.training.images:ImageTraining.training_step", ["--recipe.lr", "1e30"]
    diverge += ["--recipe.warmup_epochs", "0"]
    data = ["--data.root", ""]
    return World(folder, write_images(folder), step, "model/model.safetensors", data, "it should hold train", diverge)


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


def test_predict_takes_a_run(world: World) -> None:
    words = ["predict", "image.png", "--ckpt", world.run("whole"), "--size", "64"]
    assert LITV2.here(*words, cwd=world.folder).out.startswith("image.png: class ")
