"""`stpt prepare`: arrays that are those of the videos, bad ones listed, and a start that goes on after a kill."""

import json
from pathlib import Path

import numpy as np
import pytest
from made import make_bad_videos, make_video, stpt

from paperkit.testing.commands import at_call
from stpt.training.frames import INDEX, read_index
from stpt.training.videos import read_video

SMALL = ["--size", "16", "--processes", "1", "--output", "frames"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        make_video(tmp_path / "videos" / f"{i}.mp4", 1.0 + i, seed=i)
    return tmp_path


def test_arrays_are_those_of_the_videos(folder: Path) -> None:
    """Two processes; from any array one can go back to its video."""
    words = [*SMALL, "--fps", "5", "--processes", "2"]
    ended = stpt.here("prepare", "videos", make_video(folder / "single.mkv", 2.0), *words, cwd=folder)
    assert "4 prepared, 0 were there, 0 bad: 8 s of video as 40 frames in frames" in ended.out
    index = read_index(folder / "frames")
    assert sorted(index) == ["0", "1", "2", "single"]
    for name, path in (("2", folder / "videos" / "2.mp4"), ("single", folder / "single.mkv")):
        expected, info = read_video(path, fps=5, size=(16, 16))
        assert info == index[name] and np.array_equal(np.load(folder / "frames" / f"{name}.npy"), expected)


def test_bad_videos_stop_nobody(folder: Path) -> None:
    bad = make_bad_videos(folder / "videos")
    ended = stpt.here("prepare", "videos", *bad.values(), *SMALL, cwd=folder, code=1)
    lines = [line for line in ended.out.splitlines() if line.startswith("bad: ")]
    assert "3 prepared, 0 were there, 7 bad" in ended.out and len(lines) == 7
    assert any("cut: is cut off: " in line for line in lines) and any("empty: is empty" in line for line in lines)
    assert sorted(read_index(folder / "frames")) == ["0", "1", "2"]
    assert sorted(path.suffix for path in (folder / "frames").iterdir()) == [".json", ".npy", ".npy", ".npy"]


def test_killed_and_started_again(folder: Path) -> None:
    """The process dies inside the second array; what was whole before is kept or made again, and nothing is half."""
    patch = "import stpt.training.preparing as p\np.INDEX_EVERY = 0\n"
    patch += at_call("stpt.training.preparing:write_array", 2)
    stpt.child("prepare", "videos", *SMALL, cwd=folder, code=-9, patch=patch)
    assert sorted(read_index(folder / "frames")) == ["0"]
    first = (folder / "frames" / "0.npy").stat().st_mtime_ns
    ended = stpt.here("prepare", "videos", *SMALL, cwd=folder)
    assert "2 prepared, 1 were there" in ended.out and (folder / "frames" / "0.npy").stat().st_mtime_ns == first
    assert "0 prepared, 3 were there" in stpt.here("prepare", "videos", *SMALL, cwd=folder).out


def test_full_disk_leaves_no_half_array(folder: Path) -> None:
    """There is room for the first array, and none for the second."""
    ended = stpt.child("prepare", "videos", *SMALL, cwd=folder, code=1, limit=9000)
    assert "cannot write frames/1.npy" in ended.line
    assert sorted(path.name for path in (folder / "frames").iterdir()) == ["0.npy", INDEX]
    assert sorted(read_index(folder / "frames")) == ["0"]


def test_a_changed_video_is_made_again(folder: Path) -> None:
    stpt.here("prepare", "videos", *SMALL, cwd=folder)
    make_video(folder / "videos" / "1.mp4", 5.0)
    assert "1 prepared, 2 were there" in stpt.here("prepare", "videos", *SMALL, cwd=folder).out
    assert read_index(folder / "frames")["1"].duration == 5.0
    assert "3 prepared, 0 were there" in stpt.here("prepare", "videos", "--again", *SMALL, cwd=folder).out


def test_other_options_are_not_mixed(folder: Path) -> None:
    stpt.here("prepare", "videos", *SMALL, cwd=folder)
    words = ["prepare", "videos", *SMALL, "--frames", "10"]
    assert "was prepared with fps 10.0 (now None), frames None (now 10)" in stpt.refused(*words, cwd=folder)
    stpt.here(*words, "--again", cwd=folder)
    content = json.loads((folder / "frames" / INDEX).read_text())
    assert content["made"]["frames"] == 10 and content["made"]["resize"] == "pillow bicubic"
    assert content["videos"]["2"]["info"]["sample_fps"] == pytest.approx(10 / 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.mp4/"], "1 bad"),
        (["empty"], "no video in empty"),
        (["videos", "--size", "0"], "size 0 is below 1"),
        (["videos", "--fps", "-1"], "fps -1.0 of a video: give more than 0"),
        (["videos", "--reader", "opencv"], "reader 'opencv' is none of pyav, decord"),
        (["videos", "other/0.mkv"], "would both be written as 0.npy"),
    ],
)
def test_impossible_words(words: list[str], message: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    make_video(folder / "other" / "0.mkv", 0.5)
    ended = stpt.here("prepare", *words, cwd=folder, code=1)
    assert message in ended.err or message in ended.out
