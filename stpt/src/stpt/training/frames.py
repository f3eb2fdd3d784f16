"""Where the frames of a data set come from: a folder of prepared arrays, AFSD's own arrays, or the video files.

A prepared folder (`stpt prepare`) holds `NAME.npy`, uint8 (N, H, W, 3) in RGB, of each video and the index
`videos.json`. AFSD's folders hold the same arrays; their index is a table `*_video_info.csv`. Arrays are mapped, not
read: a clip costs the memory of the clip.
"""

import csv
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy

from paperkit.errors import UserError, one_line
from paperkit.files.atomic import atomic_file, write_atomic
from paperkit.files.bounded import regular_file
from stpt.training.annotations import bare, file_name, read_large_json
from stpt.training.videos import Frames, VideoFile, VideoInfo, video_files

INDEX = "videos.json"
FORM = 1
COLUMNS = ("video", "fps", "sample_fps", "count", "sample_count")
"""Of AFSD's table."""
OPEN = 32
"""Video files whose time stamps are kept."""


class Source(Protocol):
    """Frames by a video's name, with or without the `v_` that ActivityNet's files begin with."""

    def names(self) -> list[str]: ...

    def info(self, name: str) -> VideoInfo: ...

    def read(self, name: str, start: int, stop: int) -> Frames: ...


def open_frames(
    folder: str | Path,
    table: str | Path | None = None,
    fps: float | None = None,
    frames: int | None = None,
    size: tuple[int, int] = (112, 112),
    reader: str = "pyav",
) -> Source:
    """What a folder holds.

    Args:
        table: AFSD's `*_video_info.csv`, for its arrays.
        fps, frames, size, reader: for video files, as `VideoFile`; arrays must have been made with this `size`.

    Raises:
        UserError: a folder that is missing, or holds neither prepared arrays nor videos.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder of frames or videos at {folder}")
    if table is not None:
        return PreparedFrames(folder, read_table(table), size)
    if (folder / INDEX).exists():
        return PreparedFrames(folder, read_index(folder), size)
    if any(folder.glob("*.npy")):
        raise UserError(f"{folder} holds arrays without {INDEX}: make them with `stpt prepare`, or name AFSD's table")
    return VideoFolder(folder, fps, frames, size, reader)


class PreparedFrames:
    """Arrays of one folder.

    Args:
        videos: what they are, by name.
        size: (H, W) that they must have.
    """

    def __init__(self, folder: Path, videos: dict[str, VideoInfo], size: tuple[int, int]) -> None:
        self.folder, self.videos, self.size = folder, videos, size
        self._names = {bare(name): name for name in videos}

    def names(self) -> list[str]:
        """Of the videos, as their files are called."""
        return list(self.videos)

    def info(self, name: str) -> VideoInfo:
        """Of a video that is listed.

        Raises:
            UserError: as `read`: what cannot be read is told before training begins.
        """
        self._array(name)
        return self.videos[self._names[bare(name)]]

    def read(self, name: str, start: int, stop: int) -> Frames:
        """Frames [start, stop), (n, H, W, 3), as far as there are any.

        Raises:
            UserError: an array that is missing, damaged, or not what the index says.
        """
        return np.array(self._array(name)[start:stop])

    def _array(self, name: str) -> Frames:
        """All frames, mapped."""
        name = self._names[bare(name)]
        path, expected = self.folder / f"{name}.npy", (self.videos[name].sample_count, *self.size, 3)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"no frames at {path}, which the list of videos names; run `stpt prepare` again") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged: {one_line(str(error))[:120]}; run `stpt prepare` again") from error
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path} is an archive of arrays; uint8 of {expected} is due")
        if array.shape != expected or array.dtype != np.uint8:
            raise UserError(f"{path} holds {array.dtype} of shape {array.shape}; uint8 of {expected} is due")
        return array


class VideoFolder:
    """Video files, decoded whenever a clip is wanted; arguments as `VideoFile`."""

    def __init__(
        self, folder: Path, fps: float | None, frames: int | None, size: tuple[int, int], reader: str = "pyav"
    ) -> None:
        self.files = {bare(name): path for name, path in video_files(folder).items()}
        self.options: dict[str, Any] = {"fps": fps, "frames": frames, "size": size, "reader": reader, "threads": 1}
        self.infos: dict[str, VideoInfo] = {}
        self.open: dict[str, VideoFile] = {}

    def names(self) -> list[str]:
        """Of the videos, as their files are called."""
        return [path.stem for path in self.files.values()]

    def info(self, name: str) -> VideoInfo:
        """Of a video; its file is looked through the first time."""
        name = bare(name)
        if name not in self.infos:
            self.infos[name] = self._file(name).info
        return self.infos[name]

    def read(self, name: str, start: int, stop: int) -> Frames:
        """Frames [start, stop), (n, H, W, 3), as far as there are any."""
        return self._file(bare(name)).read(start, stop)

    def _file(self, name: str) -> VideoFile:
        if name not in self.open:
            if len(self.open) >= OPEN:
                del self.open[next(iter(self.open))]
            self.open[name] = VideoFile(self.files[name], **self.options)
        return self.open[name]


@dataclass(frozen=True)
class Entry:
    """A video in the index.

    Attributes:
        info: what it is. source: its file's name. bytes: of that file.
    """

    info: VideoInfo
    source: str
    bytes: int


def write_array(path: Path, video: VideoFile) -> None:
    """All kept frames of a video as `.npy`, whole or not at all; in memory is one at a time."""
    frames = video.stream()
    first = next(frames)
    with atomic_file(path) as file:
        shape = (len(video), *first.shape)
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.write(first.tobytes())
        for frame in frames:
            file.write(frame.tobytes())


def write_index(folder: Path, entries: dict[str, Entry], made: dict[str, Any]) -> None:
    """Write `videos.json`, whole or not at all.

    Args:
        made: with which options the arrays were made; other ones are not mixed with them.
    """
    videos = {name: asdict(entry) for name, entry in sorted(entries.items())}
    write_atomic(folder / INDEX, json.dumps({"form": FORM, "made": made, "videos": videos}, indent=1) + "\n")


def read_entries(folder: Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    """What `write_index` wrote: the entries, and how the arrays were made.

    Raises:
        UserError: a missing or damaged index.
    """
    path = folder / INDEX
    content = read_large_json(path, "list of prepared videos")
    try:
        if content["form"] != FORM:
            raise UserError(f"{path} is of form {content['form']}; form {FORM} is read")
        entries = {
            file_name(name, str(path)): Entry(**{**entry, "info": VideoInfo(**entry["info"])})
            for name, entry in content["videos"].items()
        }
        return entries, dict(content["made"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {one_line(str(error))[:120]}; run `stpt prepare` again") from error


def read_index(folder: Path) -> dict[str, VideoInfo]:
    """The videos of a prepared folder."""
    return {name: entry.info for name, entry in read_entries(folder)[0].items()}


def read_table(path: str | Path) -> dict[str, VideoInfo]:
    """AFSD's table of videos.

    Raises:
        UserError: another file, a column that is missing, a number that is none.
    """
    path = regular_file(path, "table of videos")
    found: dict[str, VideoInfo] = {}
    lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            fps, sample_fps, count, kept = (float(row[column]) for column in COLUMNS[1:])
            if not all(map(math.isfinite, (fps, sample_fps, count, kept))) or fps <= 0:
                raise ValueError(", ".join(f"{column} {row[column]}" for column in COLUMNS))
            found[file_name(row["video"], f"{path} line {number}")] = VideoInfo(
                fps, int(count), count / fps, sample_fps, int(kept)
            )
        except (KeyError, TypeError, ValueError) as error:
            said = one_line(str(error))
            raise UserError(f"{path} line {number}: not all of {', '.join(COLUMNS)}: {said}") from error
    if not found:
        raise UserError(f"{path} lists no video")
    return found
