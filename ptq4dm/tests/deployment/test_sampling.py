"""Images in a folder: the same for every batch size, whole or not at all, balanced classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import pixel_folder, ptq4dm
from PIL import Image

from paperkit.errors import UserError
from paperkit.files.arrays import read_npz
from ptq4dm.deployment import sampling
from ptq4dm.deployment.sampling import GRID, NPZ, RECORD, Sampling, grid, sample
from ptq4dm.models.pipelines import draw, load_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pipeline(pixel_folder(tmp_path_factory.mktemp("pipeline")))


def test_batch_size_changes_nothing(pipeline: Any, tmp_path: Path) -> None:
    for batch in (5, 2):
        sample(pipeline, Sampling(5, batch, 2, 1.0, 1.0), tmp_path / str(batch), {"weights": "made"}, files=True)
    five, two = (read_npz(tmp_path / name / NPZ)["arr_0"].astype(int) for name in ("5", "2"))
    assert five.shape == (5, 8, 8, 3) and abs(five - two).max() <= 1  # a rounding may turn
    picture = np.asarray(Image.open(tmp_path / "2" / "images" / "000004.png"))
    assert np.array_equal(picture, two[4])
    assert Image.open(tmp_path / "2" / GRID).size == (24, 16)
    record = json.loads((tmp_path / "2" / RECORD).read_text())
    assert record["weights"] == "made" and record["sampling"]["rounding"] == "round"


def test_an_interrupted_call_goes_on(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old images stay as they are, nothing takes them for the new ones, and no batch is drawn twice."""
    sample(pipeline, Sampling(2, 2, 2, 0.0, 1.0), tmp_path / "a", {})
    before = (tmp_path / "a" / NPZ).read_bytes()
    wanted = Sampling(6, 2, 2, 1.0, 1.0)

    def interrupt(images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(pipeline, wanted, tmp_path / "a", {}, on_batch=interrupt)
    assert (tmp_path / "a" / NPZ).read_bytes() == before and not (tmp_path / "a" / RECORD).exists()
    assert not list(tmp_path.rglob("*.tmp-*"))
    drawn: list[int] = []

    def noted(pipeline: Any, first: int, *rest: Any) -> Any:
        drawn.append(first)
        return draw(pipeline, first, *rest)

    monkeypatch.setattr(sampling, "draw", noted)
    sample(pipeline, wanted, tmp_path / "a", {})
    assert drawn == [2, 4] and not (tmp_path / "a" / "parts").exists()
    sample(pipeline, wanted, tmp_path / "b", {})
    assert (tmp_path / "a" / NPZ).read_bytes() == (tmp_path / "b" / NPZ).read_bytes()


def test_parts_of_other_settings_are_drawn_again(pipeline: Any, tmp_path: Path) -> None:
    def interrupt(images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(pipeline, Sampling(4, 2, 2, 0.0, 1.0, seed=1), tmp_path / "a", {}, on_batch=interrupt)
    for name in ("a", "b"):
        sample(pipeline, Sampling(4, 2, 2, 0.0, 1.0, seed=2), tmp_path / name, {})
    with pytest.raises(KeyboardInterrupt):
        sample(pipeline, Sampling(4, 2, 2, 0.0, 1.0, seed=3), tmp_path / "a", {}, on_batch=interrupt)
    other = load_pipeline(pixel_folder(tmp_path / "other", seed=5))  # as if a path had got other weights
    for name in ("a", "b"):
        sample(other, Sampling(4, 2, 2, 0.0, 1.0, seed=3), tmp_path / name, {})
    assert np.array_equal(*(read_npz(tmp_path / name / NPZ)["arr_0"] for name in ("a", "b")))


def test_classes() -> None:
    assert Sampling(6, classes=("balanced",)).labels(0, 6, 3) == [0, 1, 2, 0, 1, 2]
    assert Sampling(4, classes=("balanced",)).labels(0, 4, 1000) == [0, 250, 500, 750]
    assert Sampling(4, classes=("7", "3")).labels(1, 3, 1000) == [3, 7, 3]
    drawn = Sampling(1000, classes=("random",)).labels(0, 1000, 10)
    assert drawn[300:400] == Sampling(1000, classes=("random",)).labels(300, 100, 10)
    assert all(60 < drawn.count(label) < 140 for label in range(10))


def test_grid_is_in_reading_order() -> None:
    images = [np.full((2, 3, 1), number, dtype=np.uint8) for number in range(1, 4)]
    assert grid(images)[::2, ::3, 0].tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count 0 is below 1"),
        ({"eta": 2.0}, "eta 2.0 is outside 0 to 1"),
        ({"rounding": "floor"}, "rounding 'floor'"),
        ({"classes": ("cat",)}, "classes cat"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)


def test_the_verb(tmp_path: Path) -> None:
    folder = pixel_folder(tmp_path / "pipeline")
    words = ("--ckpt", str(folder), "--count", "3", "--steps", "2", "--output", "out", "--device", "cpu")
    printed = ptq4dm.here("sample", *words, cwd=tmp_path).out
    assert "unet float32" in printed and (tmp_path / "out" / GRID).is_file()
    line = ptq4dm.refused("sample", "--ckpt", str(tmp_path / "none"), cwd=tmp_path)
    assert "none" in line
