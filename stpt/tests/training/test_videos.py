"""Which frames of a video file are kept, at even and variable rates, and one line for every bad file."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made import frames_of, make_bad_videos, make_variable, make_video, write_video
from PIL import Image

from paperkit.errors import UserError
from stpt.training.videos import VideoFile, VideoInfo, is_variable, kept_frames, read_video, video_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def bad(folder: Path) -> dict[str, Path]:
    return make_bad_videos(folder / "bad")


@pytest.fixture(scope="module")
def counted(folder: Path) -> Path:
    """60 pictures at 24 a second; picture i is of brightness 4 i."""
    pixels = np.stack([np.full((32, 48, 3), 4 * i, np.uint8) for i in range(60)])
    return write_video(folder / "counted.mp4", pixels, 24)


def brightness(frames: np.ndarray) -> np.ndarray:
    return frames.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("count", "fps", "wanted", "kept"),
    [
        (10, 30.0, 10.0, [2, 5, 8]),
        (10, 25.0, 10.0, [2, 4, 7, 9]),  # the counter reaches 2.5 at frames 3, 5, 8, 10
        (5, 10.0, 10.0, [0, 1, 2, 3, 4]),
        (7, 12.0, 5.0, [2, 4]),
    ],
)
def test_kept_frames_of_an_even_rate(count: int, fps: float, wanted: float, kept: list[int]) -> None:
    assert kept_frames(count, fps, wanted).tolist() == kept


def test_both_rules_agree_on_an_even_rate() -> None:
    for fps, wanted in ((30.0, 10.0), (25.0, 10.0), (24.0, 7.0), (29.97, 10.0), (10.0, 10.0)):
        ends = np.arange(1, 301) / fps
        assert np.array_equal(kept_frames(ends, fps, wanted), kept_frames(300, fps, wanted)), (fps, wanted)


def test_a_long_frame_is_kept_for_several_ticks() -> None:
    ends = np.array([0.1, 0.2, 0.7, 0.8])
    assert kept_frames(ends, 5.0, 10.0).tolist() == [0, 1, 2, 2, 2, 2, 2, 3]
    assert is_variable(np.array([0.0, 0.1, 0.2, 0.7])) and not is_variable(np.array([0.0, 0.033, 0.067, 0.1]))


def test_even_rate(counted: Path) -> None:
    frames, info = read_video(counted, fps=8, size=(20, 24))
    assert info == VideoInfo(24.0, 60, 2.5, 8, 20) and frames.shape == (20, 20, 24, 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(brightness(frames), 4 * (3 * np.arange(20) + 2), atol=3)
    assert info.position(1.5) == 12.0


def test_every_frame_and_a_faster_wish(counted: Path) -> None:
    for fps in (None, 100):
        frames, info = read_video(counted, fps=fps, size=(32, 48))
        assert info.sample_fps == 24 and np.abs(brightness(frames) - 4 * np.arange(60)).max() < 3


def test_most_frames(counted: Path) -> None:
    """ActivityNet's rule: fps * min(frames / count, 1)."""
    _, info = read_video(counted, frames=20)
    assert info.sample_fps == pytest.approx(8.0) and info.sample_count == 20
    _, info = read_video(counted, frames=45)
    assert info.sample_fps == pytest.approx(18.0) and info.sample_count == 45
    assert read_video(counted, frames=100)[1].sample_count == 60


def test_variable_rate(folder: Path) -> None:
    frames, info = read_video(make_variable(folder / "variable.mp4"), fps=10)
    assert info.variable and info.frames == 35 and info.sample_fps == 10
    # Tick k is at k / 10 s and shows what began before it: pictures of 40 ms, then of 200 ms.
    ticks = np.arange(1, len(frames) + 1) * 100
    shown = np.where(ticks <= 1000, (ticks - 1) // 40 * 40, 1000 + (np.maximum(ticks - 1001, 0)) // 200 * 200)
    np.testing.assert_allclose(brightness(frames), 0.08 * shown, atol=4)


def test_any_stretch_is_that_of_the_whole(folder: Path) -> None:
    """Over key frames (one in 12) and from any place."""
    path = make_video(folder / "long.mp4", 8.0, 20.0)
    whole, _ = read_video(path, fps=10, size=(24, 24))
    video = VideoFile(path, fps=10, size=(24, 24))
    assert len(video) == len(whole) == 80
    for start, stop in ((0, 7), (5, 6), (37, 61), (70, None), (79, 200)):
        assert np.array_equal(video.read(start, stop), whole[start:stop]), (start, stop)
    assert np.array_equal(video.read(3, 40, 9), whole[3:40:9])
    with pytest.raises(UserError, match="has 80 frames and none from 80"):
        video.read(80)


def test_resize_is_pillows_bicubic(folder: Path) -> None:
    path = make_video(folder / "resized.mkv", 1.0)
    full, _ = read_video(path, size=(32, 48))
    small, _ = read_video(path, size=(13, 20))
    expected = [np.asarray(Image.fromarray(f).resize((20, 13), Image.Resampling.BICUBIC)) for f in full]
    assert np.array_equal(small, np.stack(expected))
    assert VideoFile(path, short_side=16).read().shape == (10, 16, 24, 3)


OTHERS = {"mkv": "libx264", "ts": "libx264", "webm": "libvpx", "avi": "mpeg4"}


@pytest.mark.parametrize("container", OTHERS)
def test_other_containers(container: str, folder: Path) -> None:
    pixels = np.stack([np.full((32, 48, 3), 8 * i, np.uint8) for i in range(24)])
    path = write_video(folder / f"other.{container}", pixels, 12, codec=OTHERS[container])
    frames, info = read_video(path, fps=6, size=(32, 48))
    assert info.fps == pytest.approx(12) and info.frames == 24 and not info.variable
    np.testing.assert_allclose(brightness(frames), 8 * (2 * np.arange(12) + 1), atol=5)


def test_turned_by_a_telephone(folder: Path) -> None:
    """The matrix of the track's header turns the picture by a quarter, clockwise."""
    pixels = frames_of((), 4, size=(32, 48))
    pixels[:, :8, :8] = 255
    pixels[:, 8:] = 0
    path = write_video(folder / "upright.mp4", pixels)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    content[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    turned = folder / "turned.mp4"
    turned.write_bytes(content)
    frames, _ = read_video(turned, size=(48, 32))
    assert frames[0, :8, 24:].mean() > 200 and frames[0, 40:].mean() < 60  # the corner went from top left to top right


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "is empty"),
        ("text", "cannot be read as a video"),
        ("cut", "is cut off: "),
        ("torn", "cannot be read as a video"),
        ("no video", "holds no video stream"),
        ("no frames", "holds no frame"),
        ("no times", "has no time stamps, so its frame rate is unknown: give it"),
    ],
)
def test_bad_files_are_named(name: str, message: str, bad: dict[str, Path]) -> None:
    with pytest.raises(UserError) as caught:
        read_video(bad[name], fps=10)
    assert str(bad[name]) in str(caught.value) and message in str(caught.value)


def test_a_given_rate_serves_where_there_is_none(bad: dict[str, Path]) -> None:
    frames, info = read_video(bad["no times"], fps=10, rate=20.0)
    assert info == VideoInfo(20.0, 12, 0.6, 10, 6) and len(frames) == 6


def test_damage_inside(folder: Path) -> None:
    """Most packets overwritten: the header is whole and claims all."""
    path = make_video(folder / "inside.mp4", 6.0)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4000
    content[start : start + 40_000] = bytes(len(content[start : start + 40_000]))
    damaged = folder / "damaged.mp4"
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.mp4 is damaged: \d+ of 60 frames"):
        read_video(damaged, fps=10)


def test_one_lost_frame_is_replaced_by_the_one_before(counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = VideoFile(counted, size=(32, 48))
    real = video.source.pictures
    monkeypatch.setattr(video.source, "pictures", lambda wanted: (pair for pair in real(wanted) if pair[0] != 30))
    np.testing.assert_allclose(brightness(video.read()[28:33]), [112, 116, 116, 124, 128], atol=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps 0 of a video"),
        ({"frames": -1}, "frames -1"),
        ({"size": (0, 9)}, "size 0"),
        ({"fps": 0.1}, "no frame at 0.1 a second"),
        ({"reader": "opencv"}, "'opencv' is none of pyav, decord"),
        ({"reader": "decord"}, "decord is not installed: pip install decord"),
    ],
)
def test_impossible_options(options: dict, message: str, counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(UserError, match=message):
        read_video(counted, **options)


def test_decord_gives_the_same_frames(counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in with decord's interface: the same frames are asked for by number."""
    pixels, _ = read_video(counted, size=(32, 48))

    class VideoReader:
        def __init__(self, path: str) -> None:
            assert path == str(counted)

        def __len__(self) -> int:
            return len(pixels)

        def get_avg_fps(self) -> float:
            return 24.0

        def get_frame_timestamp(self, numbers: range) -> np.ndarray:
            return np.stack([np.array(numbers), np.array(numbers) + 1], 1) / 24 + 5.0

        def __getitem__(self, number: int) -> SimpleNamespace:
            return SimpleNamespace(asnumpy=lambda: pixels[number])

    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=VideoReader))
    for options in ({"fps": 10}, {"frames": 20}, {}):
        ours, theirs = (read_video(counted, size=(32, 48), reader=r, **options) for r in ("pyav", "decord"))
        assert np.array_equal(ours[0], theirs[0]) and ours[1] == theirs[1]


def test_files_of_a_folder(folder: Path) -> None:
    make_video(folder / "two" / "a.mp4", 0.5)
    (folder / "two" / "notes.txt").write_text("no video")
    assert video_files(folder / "two") == {"a": folder / "two" / "a.mp4"}
    (folder / "two" / "a.AVI").write_bytes(b"x")
    with pytest.raises(UserError, match="have one name"):
        video_files(folder / "two")
    with pytest.raises(UserError, match="no folder of videos at"):
        video_files(folder / "nowhere")
    (folder / "none").mkdir()
    with pytest.raises(UserError, match="no video in"):
        video_files(folder / "none")
