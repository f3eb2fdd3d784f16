"""Check a file of annotations, or convert it between the forms of data sets.

check PATH     counts videos and actions of each subset and names what is odd: impossible actions, actions written
               twice, unknown classes, videos without a subset; with --videos also who is absent or unreadable, and
               actions past the end of their file. Exit code 1 if training would stumble over it.
convert PATH   writes --output: one JSON file (--to json), which trains, or ActionFormer's (--to actionformer), or
               AFSD's two tables (--to afsd); with --mend actions are cut to their videos, and doubles and empty ones
               left out. --videos fills in durations, frame rates and numbers of frames.

PATH is ActivityNet's, THUMOS14's or ActionFormer's JSON, AFSD's tables or THUMOS14's folder of texts.
"""

from typing import Any, Literal

PUBLISHED = """THUMOS14, validation: 200 videos with 3,007 actions; test: 212 with 3,358 in AFSD's tables, 210 with
3,311 in the evaluator's file"""


def add_arguments(parser: Any) -> None:
    parser.add_argument("work", type=Literal["check", "convert"], help="what to do")
    parser.add_argument("path", type=str, help="file or folder of annotations")
    parser.add_argument("--subset", type=str | None, default=None, help="only this subset")
    parser.add_argument("--classes", type=str | None, default=None, help="file of class names, one a line, in order")
    parser.add_argument(
        "--videos",
        type=str | None,
        default=None,
        help="folder of videos, or of what `stpt prepare` made of them, to "
        "compare with; check: also other files, or other annotations, whose names are compared",
    )
    parser.add_argument("--all", action="store_true", help="check: name every fault, not the first of each kind")
    parser.add_argument("--to", type=Literal["json", "actionformer", "afsd"], default="json", help="convert: form")
    parser.add_argument("--output", type=str | None, default=None, help="convert: file to write")
    parser.add_argument("--mend", action="store_true", help="convert: cut or leave out what cannot be")


def run(arguments: Any) -> int:
    from paperkit.data.label_maps import class_names
    from paperkit.errors import UserError
    from stpt.training.annotation_forms import FORMS
    from stpt.training.annotations import mend, read_annotations
    from stpt.training.frames import open_frames
    from stpt.training.measured import measured

    classes = None if arguments.classes is None else class_names(arguments.classes)
    if arguments.work == "check":
        return _check(arguments, classes)
    if arguments.output is None:
        raise UserError("convert needs the file to write: --output FILE")
    annotations = read_annotations(arguments.path, arguments.subset, classes, "keep")
    if arguments.videos is not None:
        annotations, unread = measured(annotations, open_frames(arguments.videos))
        if unread:
            raise UserError(unread[0].text)
    if arguments.mend:
        annotations = mend(annotations)
    FORMS[arguments.to](arguments.output, annotations)
    actions = sum(len(video.actions) for video in annotations.videos.values())
    print(
        f"{arguments.output}: {len(annotations.videos)} videos, {actions} actions, {len(annotations.classes)} classes"
    )
    return 0


def _check(arguments: Any, classes: tuple[str, ...] | None) -> int:
    from paperkit.results.report import table
    from stpt.models.labels import THUMOS14
    from stpt.training.annotations import WRONG, Fault, check_annotations, read_annotations
    from stpt.training.measured import measured

    annotations = read_annotations(arguments.path, arguments.subset, classes, "keep", unknown="keep")
    videos = list(annotations.videos.values())
    rows = []
    for subset in sorted({video.subset or "(none)" for video in videos}):
        chosen = [video for video in videos if (video.subset or "(none)") == subset]
        actions = [action for video in chosen for action in video.actions]
        labels, seconds = {action.label for action in actions}, sum(action.end - action.start for action in actions)
        long = f"{seconds / len(actions):.1f}" if actions else "-"
        full = sum(1 for video in chosen if video.actions)
        rows.append((subset, len(chosen), full, len(actions), len(labels), long))
    columns = ("subset", "videos", "with actions", "actions", "classes", "mean length, s")
    table(rows, columns, f"{arguments.path}: {len(annotations.classes)} classes")
    if set(annotations.classes) == set(THUMOS14):
        print(
            "THUMOS14 has 200 videos with 3,007 actions (validation); test: 212 with 3,358 in AFSD's tables, 210 with"
        )
        print("3,311 in the evaluator's file")
    names: set[str] | None = None
    found: list[Fault] = []
    if arguments.videos is not None:
        names, source = _there(arguments.videos)
        if source is not None:
            annotations, found = measured(annotations, source)
    found += check_annotations(annotations, names)
    for kind in dict.fromkeys(fault.kind for fault in found):
        some = [fault for fault in found if fault.kind == kind]
        print(f"{kind}: {len(some)}")
        for fault in some if arguments.all else some[:3]:
            print(f"  {fault.video}: {fault.text}")
        if len(some) > 3 and not arguments.all:
            print(f"  and {len(some) - 3} more (--all)")
    bad = [fault for fault in found if fault.kind in (*WRONG, "class", "absent", "unreadable")]
    if not any(video.actions for video in videos):
        print("no action in any video, so there is nothing to train on")
        return 1
    print(f"{len(bad)} that training would stumble over" if bad else "nothing that training would stumble over")
    return 1 if bad else 0


def _there(place: str) -> tuple[set[str], Any]:
    """Names of what is there, and the source of their frames, if it is one."""
    from pathlib import Path

    from paperkit.errors import UserError
    from stpt.training.annotations import read_annotations
    from stpt.training.frames import INDEX, open_frames
    from stpt.training.videos import SUFFIXES

    path = Path(place)
    if not path.exists():
        raise UserError(f"no folder of videos and no annotations at {path}")
    if not path.is_dir() or any(path.glob("*_Annotation_ours.csv")):
        return set(read_annotations(path, faults="keep").videos), None
    files = [file for file in path.iterdir() if file.is_file() and file.suffix not in (".json", ".csv", ".txt")]
    framed = (path / INDEX).exists() or any(file.suffix.lower() in SUFFIXES for file in files)
    return {file.stem for file in files}, open_frames(path) if framed else None
