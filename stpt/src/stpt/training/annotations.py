"""Which actions happen when in which video, read from every form that the data sets come in.

Forms, told by their content:
- ActivityNet's JSON, and one's own in its form: {"database": {NAME: {"subset", "duration", "annotations": [{"label",
  "segment": [start s, end s]}]}}}, the subset and the duration where they are known, optionally {"classes": [...]};
- THUMOS14's evaluator JSON (times as strings) and ActionFormer's JSON (with "fps", and "label_id" as the order of
  classes), which are such files too; AFSD's list of ActivityNet's videos, which lacks the "database" around it;
- AFSD's `val_Annotation_ours.csv`, with `val_video_info.csv` beside it, or a folder with such files;
- THUMOS14's folder of text files, `CLASS_val.txt` and `CLASS_test.txt`.

All times are seconds of the video.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from paperkit.errors import UserError, one_line
from paperkit.files.atomic import write_atomic
from paperkit.files.bounded import regular_file
from stpt.models.labels import AMBIGUOUS, THUMOS14

SAME = 1e-3
"""Seconds by which the ends of an action written twice may differ (what OpenTAD calls a duplicate)."""
SLACK = 0.1
"""Seconds by which an action may end after its video: files round times and durations to tenths."""
SUBSETS = {"val": "validation", "test": "test"}
"""The subset that a file of THUMOS14 means by its name."""


@dataclass(frozen=True)
class Action:
    """One action. Attributes: start, end: in seconds. label: name of its class."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Video:
    """One video and its actions.

    Attributes:
        subset: as the file says, in lower case; None where it says nothing.
        duration: in seconds. fps: frames a second of the source. frames: of the source. Each None if unknown.
    """

    name: str
    subset: str | None
    duration: float | None
    fps: float | None
    frames: int | None
    actions: tuple[Action, ...]


@dataclass(frozen=True)
class Annotations:
    """Videos by name, in the order of the file, and all classes, also those that the chosen subset has no action of.

    Class number i of the network, from 1 on, is `classes[i - 1]`.
    """

    videos: dict[str, Video]
    classes: tuple[str, ...]

    def index(self, label: str) -> int:
        """Number of a class, 1..C.

        Raises:
            UserError: a name that is none of them.
        """
        if label not in self.classes:
            raise UserError(f"unknown class {label!r}; the {len(self.classes)} classes are {_shown(self.classes)}")
        return self.classes.index(label) + 1


@dataclass(frozen=True)
class Fault:
    """Something odd in annotations.

    Attributes:
        kind: negative, empty, past end, duplicate, overlap, class, subset, duration, no actions, absent, unlisted.
        video: its name.
        text: what it is, in words.
    """

    kind: str
    video: str
    text: str


WRONG = ("negative", "empty", "past end")
"""Kinds of faults that make an action impossible."""


def read_annotations(
    path: str | Path,
    subset: str | None = None,
    classes: Sequence[str] | None = None,
    faults: Literal["refuse", "mend", "keep"] = "refuse",
    unknown: Literal["refuse", "keep"] = "refuse",
) -> Annotations:
    """The videos of a file or folder of annotations.

    Args:
        subset: keep these videos only, capitals or not; None keeps all.
        classes: the names, in the order of the network's outputs. Without them: what the file declares; THUMOS14's 20
            where all labels are among them; else the file's labels, by `label_id` or by name.
        faults: what becomes of actions that begin before 0, end after the video or have no length: `refuse` raises,
            `mend` cuts them to the video and leaves out what is empty or stands twice, `keep` keeps all as written
            (a truth to be scored against).
        unknown: whether classes that `classes` or the file do not declare are refused.

    Raises:
        UserError: unreadable, another form, a subset that is not there, an unknown class, or (refuse) a fault.
    """
    path = Path(path)
    videos, declared = _read(path)
    names = tuple(classes) if classes is not None else declared or _classes_of(videos)
    for video in videos:
        file_name(video.name, str(path))
        for action in video.actions:
            if unknown == "refuse" and action.label not in names:
                raise UserError(f"{path}: {video.name} has the unknown class {action.label!r}; known: {_shown(names)}")
    found = Annotations({video.name: video for video in _of_subset(videos, subset, path)}, names)
    if faults == "mend":
        return mend(found)
    wrong = [fault for fault in check_annotations(found) if fault.kind in WRONG] if faults == "refuse" else []
    if wrong:
        more = f", and {len(wrong) - 1} more of that sort" if len(wrong) > 1 else ""
        raise UserError(
            f"{path}: {wrong[0].video} has {wrong[0].text}{more}; `stpt annotations check` shows all, "
            "`stpt annotations convert --mend` mends them"
        )
    return found


def check_annotations(annotations: Annotations, names: Collection[str] | None = None) -> list[Fault]:
    """What is odd: impossible actions, actions written twice, videos without a subset, and absentees.

    Args:
        names: videos that are there (names of files without ending). Without it nobody is absent.
    """
    found = [fault for video in annotations.videos.values() for fault in _faults_of(video, annotations.classes)]
    if any(video.subset for video in annotations.videos.values()):
        lacking = [video.name for video in annotations.videos.values() if not video.subset]
        found += [Fault("subset", name, "no subset, while other videos have one") for name in lacking]
    if names is not None:
        there, listed = {bare(name) for name in names}, {bare(name) for name in annotations.videos}
        absent = [name for name in annotations.videos if bare(name) not in there]
        found += [Fault("absent", name, "no video of this name") for name in absent]
        unlisted = [name for name in sorted(names) if bare(name) not in listed]
        found += [Fault("unlisted", name, "a video that no annotation names") for name in unlisted]
    return found


def mend(annotations: Annotations) -> Annotations:
    """Cut actions to their videos; leave out those that are empty then, and all but the first of equal ones."""
    videos = {}
    for name, video in annotations.videos.items():
        end = math.inf if video.duration is None else video.duration
        cut = [replace(action, start=max(action.start, 0.0), end=min(action.end, end)) for action in video.actions]
        videos[name] = replace(video, actions=once([action for action in cut if action.end > action.start]))
    return replace(annotations, videos=videos)


def write_annotations(path: str | Path, annotations: Annotations) -> None:
    """Write ActivityNet's form, whole or not at all; `read_annotations` gives the same annotations again."""
    database: dict[str, Any] = {}
    for video in annotations.videos.values():
        known = {key: getattr(video, key) for key in ("subset", "duration", "fps", "frames")}
        entry = {key: value for key, value in known.items() if value is not None}
        entry["annotations"] = [{"label": a.label, "segment": [a.start, a.end]} for a in video.actions]
        database[video.name] = entry
    content = {"version": "stpt", "classes": annotations.classes, "database": database}
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def bare(name: str) -> str:
    """A video's name without the `v_` that ActivityNet's files have and its annotations have not."""
    return name.removeprefix("v_")


def file_name(name: str, where: str) -> str:
    """The name of a video, which names its arrays and pictures too.

    Raises:
        UserError: a name that would lead out of their folder, with `where` it stands.
    """
    if not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise UserError(f"{where} names the video {name[:60]!r}; a name is that of a file, without folder and ending")
    return name


def once(actions: Iterable[Action]) -> tuple[Action, ...]:
    """The actions without those that stand twice."""
    kept: list[Action] = []
    for action in actions:
        if not any(_same(action, other) for other in kept):
            kept.append(action)
    return tuple(kept)


def _same(one: Action, other: Action) -> bool:
    near = abs(one.start - other.start) <= SAME and abs(one.end - other.end) <= SAME
    return near and one.label == other.label


def read_large_json(path: str | Path, what: str) -> Any:
    """The content of a JSON file of any size that memory holds.

    Raises:
        UserError: no such file, or damaged.
    """
    try:
        return json.loads(regular_file(path, what).read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON: {one_line(str(error))[:200]}") from error


def segment_of(value: Any, where: str) -> tuple[float, float]:
    """(start, end) in seconds of a JSON list of two numbers or of two strings that hold them.

    Raises:
        UserError: anything else, with `where` it stands.
    """
    try:
        if isinstance(value, str):  # two digits would be two numbers
            raise TypeError
        start, end = (float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where} has the segment {str(value)[:60]}; it is [start s, end s]") from None
    if not (math.isfinite(start) and math.isfinite(end)):
        raise UserError(f"{where} has the segment {str(value)[:60]}, which is not finite")
    return start, end


def _faults_of(video: Video, classes: Sequence[str]) -> Iterator[Fault]:
    if not video.actions:
        yield Fault("no actions", video.name, "no action")
    if video.duration is None:
        yield Fault("duration", video.name, "no duration, so that nobody can tell whether actions lie in it")
    for number, action in enumerate(video.actions, 1):
        said = f"action {number} ({action.label}) of {action.start:g} to {action.end:g} s"
        if action.start < 0:
            yield Fault("negative", video.name, f"{said}, which begins before the video")
        if action.end <= action.start:
            yield Fault("empty", video.name, f"{said}, which has no length")
        if video.duration is not None and action.end > video.duration + SLACK:
            yield Fault("past end", video.name, f"{said}, while the video ends at {video.duration:g} s")
        if action.label not in classes:
            yield Fault("class", video.name, f"{said}, of an unknown class")
        for place, other in enumerate(video.actions[: number - 1], 1):
            if _same(action, other):
                yield Fault("duplicate", video.name, f"{said}, which is action {place} again")
            elif action.label == other.label and _overlap(action, other) > 0.5:
                yield Fault("overlap", video.name, f"{said}, which is more than half the same time as action {place}")


def _overlap(one: Action, other: Action) -> float:
    """Temporal intersection over union; 0 for actions without length."""
    common = max(min(one.end, other.end) - max(one.start, other.start), 0.0)
    union = one.end - one.start + other.end - other.start - common
    return common / union if union > 0 else 0.0


def _of_subset(videos: Sequence[Video], subset: str | None, path: Path) -> list[Video]:
    if subset is None:
        return list(videos)
    known = sorted({video.subset for video in videos if video.subset})
    if not known:
        raise UserError(
            f"{path}: no video has the field `subset`, so none is of {subset!r}; write it, or take all videos"
        )
    if lacking := [video.name for video in videos if not video.subset]:
        raise UserError(f"{path}: {len(lacking)} videos lack the field `subset`, such as {lacking[0]}")
    if subset.lower() not in known:
        raise UserError(f"{path}: no video is of the subset {subset!r}; it has {', '.join(known)}")
    return [video for video in videos if video.subset == subset.lower()]


def _classes_of(videos: Iterable[Video]) -> tuple[str, ...]:
    labels = {action.label for video in videos for action in video.actions}
    return tuple(THUMOS14) if labels <= THUMOS14.keys() else tuple(sorted(labels))


def _shown(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") if names else "none"


def _read(path: Path) -> tuple[list[Video], tuple[str, ...]]:
    """The videos, and the classes that the file declares, if any."""
    if path.is_dir():
        return _read_folder(path), ()
    if path.suffix.lower() == ".csv":
        return _read_csv(path), ()
    return _read_json(path)


def _read_folder(path: Path) -> list[Video]:
    tables = sorted(path.glob("*_Annotation_ours.csv"))
    if tables:
        return [video for table in tables for video in _read_csv(table)]
    texts = [text for end in SUBSETS for text in sorted(path.glob(f"*_{end}.txt"))]
    if not texts:
        raise UserError(
            f"{path} holds no annotations: neither *_Annotation_ours.csv nor CLASS_val.txt or CLASS_test.txt"
        )
    actions: dict[tuple[str, str], list[Action]] = {}
    for text in texts:
        label, _, end = text.stem.rpartition("_")
        for number, line in enumerate(regular_file(text, "text file").read_text("utf-8").splitlines(), 1):
            if not line.strip() or label == AMBIGUOUS:
                continue
            name, *times = line.rsplit(maxsplit=2)  # a name may hold spaces
            start, stop = segment_of(times, f"{text} line {number}")
            actions.setdefault((name.strip(), SUBSETS[end]), []).append(Action(start, stop, label))
    return [Video(name, subset, None, None, None, tuple(found)) for (name, subset), found in actions.items()]


def _read_csv(path: Path) -> list[Video]:
    """AFSD's pair of tables. Frames count, as in its training; seconds do where there is no table of videos."""
    told = path.name.partition("_")[0]
    beside = path.with_name(path.name.replace("_Annotation_ours", "_video_info"))
    known = beside.exists() and beside != path
    infos = {row["video"]: row for row in _rows(beside, ("video", "fps", "count"))} if known else {}
    actions: dict[str, list[Action]] = {name: [] for name in infos}
    columns = ("video", "type", *(("startFrame", "endFrame") if known else ("start", "end")))
    for number, row in enumerate(_rows(path, columns), 2):
        name, where = row["video"], f"{path} line {number}"
        if known and name not in infos:
            raise UserError(f"{where} names the video {name}, which {beside} does not list")
        if row["type"] == AMBIGUOUS:
            continue
        start, end = segment_of((row[columns[2]], row[columns[3]]), where)
        rate = _positive(infos[name]["fps"], f"{beside}: {name} has the fps") if known else 1.0
        actions.setdefault(name, []).append(Action(start / rate, end / rate, row["type"]))
    videos = []
    for name, found in actions.items():
        fps = frames = duration = None
        if known:
            fps = _positive(infos[name]["fps"], f"{beside}: {name} has the fps")
            frames = int(_positive(infos[name]["count"], f"{beside}: {name} has the count"))
            duration = frames / fps
        videos.append(Video(name, SUBSETS.get(told), duration, fps, frames, tuple(found)))
    return videos


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(regular_file(path, "table").read_text("utf-8-sig").splitlines()))
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path} is no table of comma-separated values: {one_line(str(error))}") from error
    for number, row in enumerate(rows, 2):
        if lacking := [column for column in columns if not row.get(column)]:
            raise UserError(f"{path} line {number} has no {lacking[0]}; the columns are {', '.join(columns)}")
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def _positive(value: Any, said: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"{said} {str(value)[:40]}; it is a number above 0")
    return number


def _read_json(path: Path) -> tuple[list[Video], tuple[str, ...]]:
    content = read_large_json(path, "file of annotations")
    database = content.get("database", content) if isinstance(content, dict) else None
    entries = database if isinstance(database, dict) else {}
    if not entries or not all(isinstance(entry, dict) and "annotations" in entry for entry in entries.values()):
        raise UserError(
            f"{path} is no file of annotations: {{'database': {{NAME: {{'annotations': [{{'label', 'segment'}}]}}}}}}"
        )
    numbers: dict[str, set[int | None]] = {}
    videos = [_video(name, entry, f"{path}: {name}", numbers) for name, entry in entries.items()]
    declared = content.get("classes", ())
    if not (isinstance(declared, list | tuple) and all(isinstance(name, str) for name in declared)):
        raise UserError(f"{path}: `classes` is no list of names")
    if twice := [name for name, times in Counter(declared).items() if times > 1]:
        raise UserError(f"{path}: `classes` names {twice[0]!r} twice")
    return videos, tuple(declared) or _by_number(numbers)


def _by_number(numbers: Mapping[str, set[int | None]]) -> tuple[str, ...]:
    """The labels in the order of their `label_id`, if each has one of its own, and they are not THUMOS14's."""
    ids = {label: next(iter(found)) for label, found in numbers.items() if len(found) == 1}
    known = {label: number for label, number in ids.items() if number is not None}
    if not known or len(known) < len(numbers) or len(set(known.values())) < len(known):
        return ()
    return () if known.keys() <= THUMOS14.keys() else tuple(sorted(known, key=lambda label: known[label]))


def _video(name: str, entry: Mapping[str, Any], where: str, numbers: dict[str, set[int | None]]) -> Video:
    subset, actions = entry.get("subset"), entry["annotations"]
    if not isinstance(actions, list):
        raise UserError(f"{where} has annotations that are a {type(actions).__name__}, not a list")
    if not (subset is None or isinstance(subset, str)):
        raise UserError(f"{where} has the subset {str(subset)[:40]}, which is no name")
    fps = _optional(entry, "fps", where)
    frames = _optional(entry, "frames" if "frames" in entry else "frame_num", where)
    found = []
    for number, action in enumerate(actions, 1):
        place = f"{where}, action {number}"
        if not isinstance(action, dict) or not isinstance(action.get("label"), str) or not action["label"]:
            raise UserError(f"{place} has no label, the name of a class")
        label = action["label"]
        if label == AMBIGUOUS:
            continue
        if "segment" in action:
            start, end = segment_of(action["segment"], place)
        elif "start_frame" in action and fps:
            start, end = segment_of((action["start_frame"], action.get("end_frame")), place)
            start, end = start / fps, end / fps
        else:
            raise UserError(f"{place} has no segment, [start s, end s]")
        numbers.setdefault(label, set()).add(_whole(action.get("label_id")))
        found.append(Action(start, end, label))
    duration = _optional(entry, "duration", where)
    whole = int(frames) if frames else None
    return Video(name, subset.lower() if subset else None, duration, fps, whole, tuple(found))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _optional(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    return None if entry.get(key) is None else _positive(entry[key], f"{where} has the {key}")
