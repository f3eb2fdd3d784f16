"""The impossible options that users of LITv2 give, through the command: one line each, exit code 1."""

from pathlib import Path

import pytest
import yaml
from made import LITV2, write_detection, write_images
from PIL import Image

from litv2.cli import ENGINES
from litv2.models.classifier import LITv2
from paperkit.testing.hostile import check_a_config_runs_nothing

SMALL = dict(embed_dim=64, depths=(1, 1, 1, 1), num_heads=(2, 4, 8, 16), num_classes=2)  # head width 32, as published
IMAGES, DETECTION = (["train", "--config", f"{name}.yaml"] for name in ("images", "detection"))
PREDICT = ["predict", "image.png", "--ckpt", "half"]
SIZES = "embed_dim: 64, depths: [1, 1, 1, 1], num_heads: [2, 4, 8, 16]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_images(folder)
    write_detection(folder)
    LITv2(**SMALL, alpha=0.5).save_pretrained(folder / "half")
    Image.new("RGB", (80, 90)).save(folder / "image.png")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*IMAGES, "--network.options", "{alpha: 1.5}"], "alpha 1.5 is outside [0, 1]"),
        ([*IMAGES, "--network.options", "{alfa: 0.5}"], "network.options"),
        ([*IMAGES, "--network.options", "{in_chans: 1}"], "in_chans 1, but the images are read with 3 channels"),
        ([*DETECTION, "--detection.options", "{in_chans: 4}"], "in_chans 4, but the images are read with 3 channels"),
        ([*IMAGES, "--network.options", "{depths: [1000000, 1, 1, 1]}"], "are more than 1000 blocks in all"),
        ([*DETECTION, "--detection.options", "{depths: [1, 1, 2000, 1]}"], "are more than 1000 blocks in all"),
        ([*IMAGES, "--network.options", "{num_heads: [0, 0, 0, 0]}"], "is not a multiple of num_heads 0"),
        ([*IMAGES, "--network.options", "{embed_dim: wide}"], "network.options does not describe a LITv2"),
        ([*IMAGES, "--network.name", "litv1_s", "--data.input_size", "4096", "--network.options", "{img_size: 4096}"],
         "has a bias for each pair of tokens"),
        ([*IMAGES, "--network.weights", "half/model.safetensors", "--network.options", f"{{{SIZES}}}"],
         "they were trained with alpha 0.5; build the model with alpha=0.5"),
        ([*IMAGES, "--network.weights", "half/model.safetensors", "--network.options",
          f"{{{SIZES}, alpha: 0.5, local_ws: [0, 0, 2, 2]}}"], "window 1 (plain attention) and larger windows"),
        ([*IMAGES, "--network.options", "{local_ws: [0, 0, 9, 1]}"],
         "window 9 of stage 3 is larger than its grid of 4 x 4 tokens"),
        ([*IMAGES, "--network.weights", "litv2_s.pth"], "put the authors' file litv2_s.pth there"),
        ([*IMAGES, "--data.input_size", "16"], "image of 16 x 16 px; the smallest is 32 x 32"),
        ([*IMAGES, "--network.name", "litv3"], "no architecture 'litv3'; there are litv2_s"),
        ([*DETECTION, "--data.categories", "[cat, bird]"], "has no category bird; it has cat, dog"),
        ([*DETECTION, "--detection.window", "1"], "window 1: stage 3 takes 2 or more"),
        ([*PREDICT, "--size", "16"], "--size 16: the smallest image is 32 x 32 px"),
        ([*PREDICT, "--window", "20"], "window 20 is larger than the grid of 14 x 14 tokens"),
        ([*PREDICT, "--window", "1"], "window 1: 1 is plain attention"),
        ([*PREDICT, "--window", "wide"], "--window wide: give a number from 2 on, or auto"),
        (["predict", "nowhere.png", "--ckpt", "half"], "no image at nowhere.png"),
        (["convert", "half/model.safetensors", "other", "--alpha", "0.9"], "build the model with alpha=0.5"),
        (["export", "--ckpt", "nowhere"], "nowhere"),
        (["bench", "--protocol"], "no CUDA device"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_one_line(words: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in LITV2.refused(*words, cwd=folder)
    assert not list(folder.rglob("finished"))


PLACES = {  # engine -> the options that take more than a number or a name
    "digits": ["alphas", "seeds"],
    "images": ["network.options", "network.options.alpha", "network.weights", "data.size_schedule", "recipe.betas"],
    "detection": ["detection.options", "detection.options.depths", "detection.weights", "data.categories"],
    "segmentation": ["cfg_options"],
}


@pytest.mark.parametrize(("engine", "place"), [(name, place) for name in ENGINES for place in PLACES[name]])
def test_a_config_runs_nothing(engine: str, place: str, folder: Path, tmp_path: Path) -> None:
    file = folder / f"{engine}.yaml"
    config = yaml.safe_load(file.read_text()) if file.exists() else {"engine": engine}
    check_a_config_runs_nothing(LITV2, config, place, tmp_path)


def test_another_window_says_what_it_changes(folder: Path) -> None:
    first, second = LITV2.here(*PREDICT, "--window", "auto", cwd=folder).out.splitlines()
    assert first.startswith("window stage 3: 7; logits change by ") and second.startswith("image.png: class ")
