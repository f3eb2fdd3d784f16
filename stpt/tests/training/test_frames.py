"""Frames of a data set: prepared arrays, AFSD's arrays with their table, and video files give the same clips."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made import make_own, make_thumos

from paperkit.errors import UserError
from stpt.training.frames import INDEX, PreparedFrames, VideoFolder, open_frames, read_index
from stpt.training.preparing import prepare
from stpt.training.videos import read_video, video_files

OPTIONS = {"fps": 5.0, "frames": None, "size": (24, 24), "rate": None, "reader": "pyav"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of ActivityNet's naming, and their arrays."""
    root = make_own(tmp_path_factory.mktemp("own"), videos=1, seconds=6.0, prefix="v_")
    prepare(video_files(root / "videos"), root / "frames", OPTIONS, processes=1)
    return root


def test_arrays_and_files_give_the_same_clips(own: Path) -> None:
    arrays = open_frames(own / "frames", size=(24, 24))
    files = open_frames(own / "videos", fps=5.0, size=(24, 24))
    assert isinstance(arrays, PreparedFrames) and isinstance(files, VideoFolder)
    assert arrays.names() == files.names() == ["v_training_0", "v_validation_0"]
    for name in ("training_0", "v_validation_0"):  # with the files' beginning and without
        assert arrays.info(name) == files.info(name) and arrays.info(name).sample_count == 30
        whole, info = read_video(own / "videos" / f"v_{name.removeprefix('v_')}.mp4", fps=5.0, size=(24, 24))
        assert info == arrays.info(name)
        for start, stop in ((0, 30), (7, 19), (25, 60)):
            assert np.array_equal(arrays.read(name, start, stop), whole[start:stop])
            assert np.array_equal(files.read(name, start, stop), whole[start:stop])


def test_few_files_stay_open(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stpt.training.frames.OPEN", 1)
    files = VideoFolder(own / "videos", 5.0, None, (24, 24))
    before = files.read("training_0", 0, 3)
    files.read("validation_0", 0, 3)
    assert len(files.open) == 1 and np.array_equal(files.read("training_0", 0, 3), before)


def test_arrays_of_afsd(tmp_path: Path) -> None:
    root = make_thumos(tmp_path, videos=1, seconds=4.0, side=16)
    source = open_frames(root / "validation_npy", root / "val_video_info.csv", size=(16, 16))
    info = source.info("video_validation_0000001")
    assert (info.fps, info.frames, info.duration, info.sample_fps, info.sample_count) == (30, 120, 4.0, 10, 40)
    assert info.position(2.0) == 20.0
    expected = np.load(root / "validation_npy" / "video_validation_0000001.npy")
    assert np.array_equal(source.read("video_validation_0000001", 30, 50), expected[30:])
    with pytest.raises(UserError, match=r"holds arrays without videos\.json"):
        open_frames(root / "validation_npy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "no frames at "),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "v_training_0.npy is damaged"),
        (lambda path: path.write_bytes(b""), "v_training_0.npy is damaged"),
        (lambda path: np.save(path, np.zeros((30, 24, 24, 3), np.float32)), "holds float32 of shape"),
        (lambda path: np.save(path, np.zeros((29, 24, 24, 3), np.uint8)), r"uint8 of \(30, 24, 24, 3\) is due"),
        (lambda path: np.save(path, np.array([{}], object)), "v_training_0.npy is damaged"),
        (lambda path: shutil.move(_archive(path), path), "is an archive of arrays"),
    ],
)
def test_bad_arrays_are_named(change: object, message: str, own: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(own / "frames", tmp_path / "frames")
    change(folder / "v_training_0.npy")
    source = open_frames(folder, size=(24, 24))
    with pytest.raises(UserError, match=message):
        source.read("training_0", 0, 5)
    with pytest.raises(UserError, match=message):  # before training begins
        source.info("training_0")


def _archive(path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), np.zeros(2))
    return path.with_suffix(".npz")


def test_another_size_is_refused(own: Path) -> None:
    with pytest.raises(UserError, match=r"holds uint8 of shape \(30, 24, 24, 3\); uint8 of \(30, 112, 112, 3\)"):
        open_frames(own / "frames").read("training_0", 0, 5)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"form": 1, "made": {}, "videos": {"a": {"info": {}}}}'])
def test_damaged_index(content: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match=r"videos\.json is damaged"):
        read_index(tmp_path)


def test_index_of_another_form_and_with_a_rate_of_nothing(own: Path, tmp_path: Path) -> None:
    content = json.loads((own / "frames" / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({**content, "form": 2}))
    with pytest.raises(UserError, match="is of form 2; form 1 is read"):
        read_index(tmp_path)
    content["videos"]["v_training_0"]["info"]["fps"] = 0
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(UserError, match="above 0"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("fps", float("nan")), ("fps", "25"), ("sample_count", 5.0), ("sample_count", 10**12)], ids=str
)
def test_an_index_of_impossible_numbers(key: str, value: object, own: Path, tmp_path: Path) -> None:
    """A count without bound would be a list of windows without end."""
    content = json.loads((own / "frames" / INDEX).read_text())
    content["videos"]["v_training_0"]["info"][key] = value
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"videos\.json is damaged: .*must be"):
        read_index(tmp_path)


def test_an_index_names_files_of_its_folder(own: Path, tmp_path: Path) -> None:
    content = json.loads((own / "frames" / INDEX).read_text())
    content["videos"]["../a"] = content["videos"]["v_training_0"]
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"names the video '\.\./a'"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,fps\na,30\n", "line 2: not all of video, fps, sample_fps"),
        ("video,fps,sample_fps,count,sample_count\na,30,10,many,5\n", "line 2: not all of .*many"),
        ("video,fps,sample_fps,count,sample_count\na,0,10,9,3\n", "line 2: .*fps 0"),
        ("video,fps,sample_fps,count,sample_count\n", "lists no video"),
    ],
)
def test_bad_tables(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "info.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        open_frames(tmp_path, tmp_path / "info.csv")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of frames or videos at"):
        open_frames(tmp_path / "nowhere")
