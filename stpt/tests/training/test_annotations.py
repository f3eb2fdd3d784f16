"""Annotations in each form that data sets come in, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from paperkit.errors import UserError
from stpt.models.labels import THUMOS14
from stpt.training.annotations import (
    Action,
    Annotations,
    check_annotations,
    mend,
    read_annotations,
    write_annotations,
)


def written(path: Path, database: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"version": "made", "database": database, **more}))
    return path


def entry(*actions: tuple[Any, Any, str], subset: str | None = "Test", duration: float | None = 60.0) -> dict[str, Any]:
    told = {"subset": subset, "duration": duration}
    found = [{"label": label, "segment": [start, end]} for start, end, label in actions]
    return {**{key: value for key, value in told.items() if value is not None}, "annotations": found}


def test_thumos_times_are_strings_and_classes_are_all_twenty(tmp_path: Path) -> None:
    path = written(tmp_path / "gt.json", {"v1": entry(("67.5", "75.9", "Billiards"), duration=None)})
    read = read_annotations(path, "test")
    assert read.videos["v1"].actions == (Action(67.5, 75.9, "Billiards"),)
    assert len(read.classes) == 20 and read.index("Billiards") == 3 and read.index("VolleyballSpiking") == 20
    assert [*THUMOS14.values()] == sorted(THUMOS14.values())


def test_classes_are_those_of_all_subsets(tmp_path: Path) -> None:
    both = {"a": entry((1, 2, "walk"), subset="training"), "b": entry((3, 4, "jump"), subset="validation")}
    read = read_annotations(written(tmp_path / "own.json", both), "Training")
    assert [*read.videos] == ["a"] and read.classes == ("jump", "walk") and read.videos["a"].subset == "training"


def test_declared_order_and_label_ids_count(tmp_path: Path) -> None:
    database = {"a": entry((1, 2, "walk"), (3, 4, "jump"))}
    assert read_annotations(written(tmp_path / "a", database, classes=["walk", "jump", "rest"])).index("rest") == 3
    database["a"]["annotations"][0]["label_id"], database["a"]["annotations"][1]["label_id"] = 0, 1
    assert read_annotations(written(tmp_path / "b", database)).classes == ("walk", "jump")


def test_list_of_activitynet_videos_in_frames(tmp_path: Path) -> None:
    action = {"start_frame": 30, "end_frame": 45, "label": "walk", "label_id": 7}
    content = {
        "v_x": {"subset": "training", "duration": 9.0, "frame_num": 135, "fps": 15.0, "annotations": [action]},
    }
    (tmp_path / "list.json").write_text(json.dumps(content))
    video = read_annotations(tmp_path / "list.json", "training").videos["v_x"]
    assert video.actions == (Action(2.0, 3.0, "walk"),) and (video.frames, video.fps) == (135, 15.0)


def test_afsd_tables(tmp_path: Path) -> None:
    """Frames count where both stand; videos without actions are listed; ambiguous rows are left out."""
    table = tmp_path / "val_Annotation_ours.csv"
    table.write_text(
        "video,type,type_idx,start,end,startFrame,endFrame\n"
        "v1,Billiards,12,9.9,19.9,250,500\nv1,Ambiguous,0,1.0,2.0,25,50\n"
    )
    alone = read_annotations(table)
    assert alone.videos["v1"].actions == (Action(9.9, 19.9, "Billiards"),)
    infos = "video,fps,sample_fps,count,sample_count\nv1,25.0,10.0,750.0,300\nv2,30.0,10.0,300.0,100\n"
    (tmp_path / "val_video_info.csv").write_text(infos)
    for place in (table, tmp_path):
        read = read_annotations(place, "validation")
        assert read.videos["v1"].actions == (Action(10.0, 20.0, "Billiards"),)
        assert (read.videos["v1"].frames, read.videos["v1"].duration) == (750, 30.0)
        assert read.videos["v2"].actions == ()


def test_thumos_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "Billiards_val.txt").write_text("video_a  67.5 75.9\nvideo_b  1.0 2.0\n")
    (tmp_path / "Ambiguous_val.txt").write_text("video_a  1 2\n")
    (tmp_path / "Diving_test.txt").write_text("video_c  3 4\n")
    read = read_annotations(tmp_path)
    assert {name: video.subset for name, video in read.videos.items()} == {
        "video_a": "validation", "video_b": "validation", "video_c": "test",
    }  # fmt: skip
    assert read.videos["video_a"].actions == (Action(67.5, 75.9, "Billiards"),)


def test_written_annotations_read_back(tmp_path: Path) -> None:
    database = {"a": {**entry((1.25, 2, "walk"), (3, 4.5, "jump")), "fps": 25}, "b": entry(duration=None)}
    path = written(tmp_path / "a.json", database, classes=["walk", "jump", "rest"])
    read = read_annotations(path)
    write_annotations(tmp_path / "again.json", read)
    assert read_annotations(tmp_path / "again.json") == read


FAULTS = {
    "negative": (-1, 2, "walk"), "empty": (5, 5, "walk"), "past end": (50, 61, "walk"), "duplicate": (10, 20, "walk"),
    "overlap": (11, 20, "walk"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_told(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {"a": entry((10, 20, "walk"), (10, 20, "jump"), FAULTS[kind])})
    kept = read_annotations(path, faults="keep")
    assert [fault.kind for fault in check_annotations(kept)] == [kind]
    if kind in ("negative", "empty", "past end"):
        with pytest.raises(UserError, match=r"a has action 3 .*annotations check"):
            read_annotations(path)
    else:
        assert read_annotations(path) == kept


def test_mended_annotations_have_no_impossible_action(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {"a": entry((10, 20, "walk"), *FAULTS.values(), (70, 80, "walk"))})
    read = read_annotations(path, faults="mend")
    spans = [(action.start, action.end) for action in read.videos["a"].actions]
    assert spans == [(10, 20), (0, 2), (50, 60), (11, 20)] and mend(read) == read


def test_absentees_and_unlisted_videos(tmp_path: Path) -> None:
    read = read_annotations(written(tmp_path / "a.json", {"a": entry((1, 2, "walk")), "b": entry((1, 2, "walk"))}))
    found = check_annotations(read, names={"v_a", "c"})
    assert {(fault.kind, fault.video) for fault in found} == {("absent", "b"), ("unlisted", "c")}
    assert isinstance(read, Annotations)


@pytest.mark.parametrize(
    ("database", "options", "words"),
    [
        ({"a": entry((1, 2, "walk"), subset=None)}, {"subset": "test"}, "no video has the field `subset`"),
        ({"a": entry((1, 2, "x")), "b": entry((1, 2, "x"), subset=None)}, {"subset": "test"}, "1 videos lack"),
        ({"a": entry((1, 2, "walk"))}, {"subset": "train"}, "no video is of the subset 'train'; it has test"),
        ({"a": entry((1, 2, "walk"))}, {"classes": ["run"]}, "unknown class 'walk'; known: run"),
        ({"a": entry((1, "late", "walk"))}, {}, r"segment \[1, 'late'\]"),
        ({"a": entry((1, "inf", "walk"))}, {}, "not finite"),
        ({"a": entry((1, 2, ""))}, {}, "no label"),
        ({"a": {"subset": "test"}}, {}, "no file of annotations"),
        ({"a": entry((1, 2, "walk"), duration=-3)}, {}, "duration -3"),
        ({}, {}, "no file of annotations"),
        ({"a": entry((1, 10**400, "walk"))}, {}, "it is .start s, end s"),
        ({"a": entry((1, 2, "walk"), duration=10**400)}, {}, "duration 1000"),
        ({"../a": entry((1, 2, "walk"))}, {}, r"names the video '\.\./a'"),
        ({"a": {"annotations": [{"label": "walk", "segment": "12"}]}}, {}, "has the segment 12"),
    ],
)
def test_bad_files_are_one_line(database: Any, options: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read_annotations(written(tmp_path / "a.json", database), **options)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"database": [1]}'])
def test_files_of_another_form(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        read_annotations(tmp_path / "a.json")


def test_a_table_without_its_columns_or_with_a_strange_video(tmp_path: Path) -> None:
    table = tmp_path / "val_Annotation_ours.csv"
    table.write_text("video,type\nv1,Billiards\n")
    with pytest.raises(UserError, match="line 2 has no start"):
        read_annotations(table)
    table.write_text("video,type,start,end,startFrame,endFrame\nv1,Billiards,1,2,30,60\n")
    (tmp_path / "val_video_info.csv").write_text("video,fps,count\nv2,30,300\n")
    with pytest.raises(UserError, match=r"names the video v1, which .*val_video_info\.csv does not list"):
        read_annotations(table)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no annotations"):
        read_annotations(tmp_path / "empty")
