"""`stpt annotations`: what it counts and names, and the forms that it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from made import make_video, stpt

from stpt.training.annotations import read_annotations


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    good = {"subset": "test", "duration": 20.0, "fps": 25, "frames": 500}
    walk = {"label": "walk", "segment": [2, 6]}
    database: dict[str, Any] = {
        "a": {**good, "annotations": [walk, walk, {"label": "jump", "segment": [-1, 30]}]},
        "b": {**good, "annotations": [walk]},
    }
    (tmp_path / "all.json").write_text(json.dumps({"database": database}))
    (tmp_path / "good.json").write_text(json.dumps({"database": {"b": database["b"]}}))
    (tmp_path / "classes.txt").write_text("jump\n")
    make_video(tmp_path / "videos" / "v_b.mp4", seconds=7, fps=8)
    return tmp_path


def test_check_counts_and_names(folder: Path) -> None:
    told = stpt.here("annotations", "check", "all.json", "--videos", "videos", cwd=folder, code=1).out
    assert "10.8" in told  # mean length of an action in seconds, (4 + 4 + 31 + 4) / 4
    for words in ("negative: 1", "past end: 1", "duplicate: 1", "absent: 1", "a: no video of this name"):
        assert words in told
    assert "3 that training would stumble over" in told


def test_check_of_good_annotations_ends_well(folder: Path) -> None:
    told = stpt.here("annotations", "check", "good.json", "--videos", "videos", cwd=folder).out
    assert "nothing that training would stumble over" in told


def test_the_videos_themselves_are_asked(folder: Path) -> None:
    """An action past the end of its file is told, a file that cannot be read too; conversion takes what is lacking."""
    content = json.loads((folder / "good.json").read_text())
    del content["database"]["b"]["fps"], content["database"]["b"]["duration"], content["database"]["b"]["frames"]
    (folder / "bare.json").write_text(json.dumps(content))
    words = ["convert", "bare.json", "--to", "actionformer", "--output", "af.json"]
    assert "b has no duration" in stpt.refused("annotations", *words, cwd=folder)
    stpt.here("annotations", *words, "--videos", "videos", cwd=folder)
    video = read_annotations(folder / "af.json").videos["b"]
    assert (video.duration, video.fps) == (7.0, 8.0)
    content["database"]["b"]["annotations"][0]["segment"] = [2, 7.5]
    (folder / "bare.json").write_text(json.dumps(content))
    told = stpt.here("annotations", "check", "bare.json", "--videos", "videos", cwd=folder, code=1).out
    assert "past end: 1" in told and "while the video ends at 7 s" in told
    (folder / "videos" / "v_b.mp4").write_bytes(b"no video")
    told = stpt.here("annotations", "check", "good.json", "--videos", "videos", cwd=folder, code=1).out
    assert "unreadable: 1" in told


def test_names_with_spaces_stand_in_texts(folder: Path) -> None:
    (folder / "texts").mkdir()
    (folder / "texts" / "Diving_val.txt").write_text("my video 2  1.5 3.0\n\n plain  4 5\n")
    read = read_annotations(folder / "texts")
    assert [(name, video.actions[0].start) for name, video in read.videos.items()] == [
        ("my video 2", 1.5),
        ("plain", 4),
    ]


def test_unknown_classes_are_counted(folder: Path) -> None:
    told = stpt.here("annotations", "check", "good.json", "--classes", "classes.txt", cwd=folder, code=1).out
    assert "class: 1" in told and "of an unknown class" in told


def test_mended_annotations_train(folder: Path) -> None:
    assert "negative" not in stpt.here("annotations", "convert", "all.json", "--output", "raw.json", cwd=folder).out
    stpt.here("annotations", "convert", "all.json", "--output", "new.json", "--mend", cwd=folder)
    read = read_annotations(folder / "new.json", "test")
    assert [(action.start, action.end) for action in read.videos["a"].actions] == [(2, 6), (0, 20)]
    assert len(read_annotations(folder / "raw.json", faults="keep").videos["a"].actions) == 3


@pytest.mark.parametrize(("form", "name"), [("actionformer", "af.json"), ("afsd", "test_Annotation_ours.csv")])
def test_other_forms_read_back(form: str, name: str, folder: Path) -> None:
    stpt.here("annotations", "convert", "all.json", "--to", form, "--output", name, "--mend", cwd=folder)
    read, wanted = (read_annotations(folder / file, faults="mend") for file in (name, "all.json"))
    assert read.videos["a"].actions == wanted.videos["a"].actions and read.classes == wanted.classes
    assert (read.videos["a"].fps, read.videos["a"].duration, read.videos["a"].subset) == (25.0, 20.0, "test")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["convert", "all.json"], "--output FILE"),
        (["check", "lost.json"], "no file of annotations at lost.json"),
        (["check", "all.json", "--subset", "train"], "no video is of the subset 'train'"),
        (["check", "all.json", "--videos", "lost"], "no folder of videos and no annotations at lost"),
        (["convert", "all.json", "--to", "afsd", "--output", "x.csv"], "NAME_Annotation_ours.csv"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str, folder: Path) -> None:
    assert line in stpt.refused("annotations", *words, cwd=folder)
