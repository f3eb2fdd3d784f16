"""`stpt detect` and `stpt features` as users call them: several files, a bad one among them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made import make_bad_videos, make_own, make_video, stpt
from PIL import Image
from safetensors import safe_open

from stpt.models.stpt import STPT


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved network, one's own videos of 14 s with their annotations, and a bad file."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    backbone = dict(name="stpt_tiny", dims=(8, 16, 32, 32), depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))
    detector = dict(num_classes=3, frames=64, levels=3, channels=32, groups=8)
    STPT(backbone, detector, (32, 32), ["wave", "jump"], 10.0).save_pretrained(folder / "network")
    make_own(folder)
    make_bad_videos(folder / "bad")
    return folder


def test_detect_writes_json_and_a_timeline(world: Path) -> None:
    videos = ["videos/training_0.mp4", "videos/validation_1.mp4"]
    words = ["--ckpt", "network", "--above", "0.0001", "--device", "cpu", "--output", "out", "--share", "--shown", "0"]
    ended = stpt.here("detect", *videos, *words, "--annotations", "annotations.json", cwd=world)
    content = json.loads((world / "out" / "detections.json").read_text())
    assert list(content["results"]) == ["training_0", "validation_1"]
    for name, rows in content["results"].items():
        assert rows and {row["label"] for row in rows} <= {"wave", "jump"}
        assert all(0 <= row["segment"][0] < row["segment"][1] <= 14.0 + 1e-5 and row["score"] > 0 for row in rows)
        with Image.open(world / "out" / f"{name}.png") as picture:
            assert picture.size[0] > 1000 and name in picture.text["Title"]  # type: ignore[attr-defined]
    about = content["external_data"]["videos"]["training_0"]
    assert about["duration"] == pytest.approx(14.0) and about["sample_fps"] == pytest.approx(10.0)
    assert "14.0 s, 4 windows" in ended.out and ended.out.count("maps drift by") == 2
    assert not list((world / "out").glob("*.tmp*"))


def test_a_bad_video_is_named_and_the_others_are_searched(world: Path) -> None:
    words = ["--ckpt", "network", "--device", "cpu", "--output", "some"]
    ended = stpt.here("detect", "bad/text.mp4", "videos/training_0.mp4", *words, cwd=world, code=1)
    assert ended.line.startswith("error: 1 of 2 videos failed: bad/text.mp4") and "left out: bad/text.mp4" in ended.out
    assert list(json.loads((world / "some" / "detections.json").read_text())["results"]) == ["training_0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bad/sound.wav"], "holds no video stream"),
        (["bad/bare.h264"], "frame rate is unknown"),
        (["nowhere.mp4"], "nowhere.mp4"),
        (["a/play.mp4", "b/play.mp4"], "two videos are named play"),
        (["videos/training_0.mp4", "--stride", "24", "--share"], "steps of 16; 24 is no multiple"),
        (["videos/training_0.mp4", "--above", "0"], "above 0"),
        (["videos/training_0.mp4", "--batch", "0"], "batch 0"),
        (["videos/training_0.mp4", "--top", "0"], "top 0 is below 1"),
        (["videos/training_0.mp4", "--annotations", "nothing.json"], "nothing.json"),
        (["videos/training_0.mp4", "--ckpt", "bad/text.mp4"], "bad/text.mp4"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], said: str, world: Path) -> None:
    assert said in stpt.refused("detect", "--ckpt", "network", "--output", "none", *words, cwd=world)
    assert not (world / "none").exists()


def test_features_are_written_in_both_forms(world: Path) -> None:
    """140 frames at 10 a second: 18 rows of 8 frames."""
    words = ["videos/training_0.mp4", "--ckpt", "network", "--device", "cpu", "--output", "features"]
    stpt.here("features", *words, cwd=world)
    rows = np.load(world / "features" / "training_0.npy")
    assert rows.shape == (18, 32) and rows.dtype == np.float32 and np.ptp(rows, axis=0).max() > 0
    about = json.loads((world / "features" / "features.json").read_text())["training_0"]
    assert (about["fps"], about["feat_stride"], about["stage"], about["shape"]) == (10.0, 8, 4, [18, 32])
    stpt.here("features", *words, "--to", "safetensors", cwd=world)
    with safe_open(world / "features" / "training_0.safetensors", "np") as file:
        np.testing.assert_allclose(file.get_tensor("features"), rows)
        assert file.metadata()["feat_stride"] == "8"
    assert "stage 1: the network's backbone gives" in stpt.refused("features", *words, "--stage", "1", cwd=world)


def test_a_video_shorter_than_a_frame_is_refused(world: Path) -> None:
    make_video(world / "blink.mp4", 0.05, fps=60.0)
    assert "no frame at 10 a second" in stpt.refused("detect", "blink.mp4", "--ckpt", "network", cwd=world)
