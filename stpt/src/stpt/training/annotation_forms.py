"""Annotations written in the forms that other tools read; ours is `stpt.training.annotations.write_annotations`."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from stpt.models.labels import THUMOS14
from stpt.training.annotations import Annotations, Video, write_annotations


def write_actionformer(path: str | Path, annotations: Annotations) -> None:
    """ActionFormer's JSON, which OpenTAD reads too: with frames and numbers of classes from 0 on.

    Raises:
        UserError: a video without duration or frame rate.
    """
    database = {}
    for video in annotations.videos.values():
        duration, fps = _known(video, "duration"), _known(video, "fps")
        actions = [
            {
                "label": action.label,
                "segment": [action.start, action.end],
                "segment(frames)": [action.start * fps, action.end * fps],
                "label_id": annotations.index(action.label) - 1,
            }
            for action in video.actions
        ]
        entry = {"duration": duration, "fps": fps, "annotations": actions}
        database[video.name] = {"subset": (video.subset or "").capitalize(), **entry}
    write_atomic(path, json.dumps({"version": "stpt", "database": database}, indent=1) + "\n")


def write_tables(path: str | Path, annotations: Annotations, sample_fps: float = 10.0) -> None:
    """AFSD's pair of tables: `NAME_Annotation_ours.csv`, which `path` must be, and `NAME_video_info.csv` beside it.

    Args:
        sample_fps: frames a second of the arrays that go with them; each `sample_count` is what that gives.

    Raises:
        UserError: another name, videos of several subsets, or one without frame rate or number of frames.
    """
    target = Path(path)
    if not target.name.endswith("_Annotation_ours.csv"):
        raise UserError(f"{path}: the table of actions is called NAME_Annotation_ours.csv, with NAME val or test")
    if len({video.subset for video in annotations.videos.values()}) > 1:
        raise UserError("AFSD's tables are of one subset each: choose it by --subset")
    actions: list[tuple[object, ...]] = []
    videos: list[tuple[object, ...]] = []
    for video in annotations.videos.values():
        fps, frames = _known(video, "fps"), _known(video, "frames")
        videos.append((video.name, fps, sample_fps, float(frames), int(frames / fps * sample_fps)))
        for action in video.actions:
            number = THUMOS14.get(action.label, annotations.index(action.label))
            span = (action.start, action.end, action.start * fps, action.end * fps)
            actions.append((video.name, action.label, number, *(round(value, 6) for value in span)))
    infos = target.with_name(target.name.replace("_Annotation_ours", "_video_info"))
    _write_rows(infos, ("video", "fps", "sample_fps", "count", "sample_count"), videos)
    _write_rows(target, ("video", "type", "type_idx", "start", "end", "startFrame", "endFrame"), actions)


FORMS: dict[str, Callable[[str | Path, Annotations], None]] = {
    "json": write_annotations,
    "actionformer": write_actionformer,
    "afsd": write_tables,
}
"""By the name that the command has for it."""


def _known(video: Video, what: str) -> float:
    value: float | None = getattr(video, what)
    if value is None:
        raise UserError(f"{video.name} has no {what}, which this form needs: give --videos FOLDER, or --to json")
    return value


def _write_rows(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([columns, *rows])
    write_atomic(path, text.getvalue())
