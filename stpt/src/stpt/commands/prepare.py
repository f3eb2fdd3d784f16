"""Videos to arrays of frames, as training reads them: FOLDER/NAME.npy of each, and the index FOLDER/videos.json.

Several videos at a time. A second start goes on where the first was stopped; a video that cannot be read stops nobody:
all such are listed at the end.

--fps     frames a second that are kept (10: THUMOS14); a file below it keeps all
--frames  the most that a video may have (768: ActivityNet); its rate is lowered to fit. In place of --fps
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("videos", nargs="+", type=str, help="video files, and folders of such")
    parser.add_argument("--output", type=str, default="runs/stpt/prepare", help="folder for the arrays")
    parser.add_argument("--fps", type=float, default=None, help="frames a second to keep; 10 without --frames")
    parser.add_argument("--frames", type=int, default=None, help="the most frames of a video")
    parser.add_argument("--size", type=int, default=112, help="height and width of the frames")
    parser.add_argument("--rate", type=float, default=None, help="frames a second of files that do not say it")
    parser.add_argument("--reader", type=str, default="pyav", help="pyav, or decord if it is installed")
    parser.add_argument("--processes", type=int, default=0, help="videos at a time; 0: one a core")
    parser.add_argument("--again", action="store_true", help="make also what is there")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.command.engines import refuse_below_one
    from paperkit.errors import UserError
    from stpt.training.preparing import prepare
    from stpt.training.videos import video_files

    refuse_below_one(arguments, ["size"])
    files: dict[str, Path] = {}
    for path in map(Path, arguments.videos):
        for name, file in (video_files(path) if path.is_dir() else {path.stem: path}).items():
            if name in files and files[name].resolve() != file.resolve():
                raise UserError(f"{files[name]} and {file} would both be written as {name}.npy; rename one of them")
            files[name] = file
    fps = arguments.fps if arguments.fps is not None or arguments.frames is not None else 10.0
    options = {"fps": fps, "frames": arguments.frames, "size": (arguments.size, arguments.size),
               "rate": arguments.rate, "reader": arguments.reader}  # fmt: skip
    made = prepare(files, Path(arguments.output), options, arguments.processes, arguments.again)
    print(
        f"{made.done} prepared, {made.kept} were there, {len(made.bad)} bad: {made.seconds:.0f} s of video as "
        f"{made.frames} frames in {arguments.output}"
    )
    for name, reason in made.bad.items():
        print(f"bad: {name}: {reason}")
    return 1 if made.bad else 0
