"""Video files as frames at an even rate: which frames are kept, how they are made small, and what is refused.

A frame is kept as AFSD keeps it: a counter grows by one with each frame of the file; where it reaches the file's rate
over the wanted rate, the frame is kept and the counter falls by that ratio. So frame i (from 0) is kept for tick k
(from 1) when its end, (i + 1) / rate, is the first that reaches k / wanted rate. A file of variable rate is sampled
by that rule on its time stamps, where a long frame may be kept for several ticks. Each kept frame is made `size` by
Pillow's bicubic filter, whatever its shape, as in AFSD's arrays of THUMOS14; another filter moves mAP by tenths.

Seconds are counted from the first frame. N frames kept, H height, W width.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paperkit.errors import UserError
from paperkit.files.bounded import regular_file

Frames = NDArray[np.uint8]
READERS = ("pyav", "decord")
SUFFIXES = (
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".flv",
    ".wmv",
    ".3gp",
    ".ogv",
    ".mts",
)
"""Of the files that a folder of videos is searched for."""
MOST = 10**8
"""Frames that a video may have, and seconds; what is told of more is no truth and would fill the memory."""
LEAST_DECODED = 0.9
"""Share of a file's frames (and of the seconds that it claims) below which it counts as damaged."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file is, and what is kept of it.

    Attributes:
        fps: frames a second of the file; the mean where it is variable.
        frames: in the file.
        duration: seconds.
        sample_fps: frames a second that are kept.
        sample_count: frames that are kept, N.
        variable: whether the frames last for different times.
    """

    fps: float
    frames: int
    duration: float
    sample_fps: float
    sample_count: int
    variable: bool = False

    def __post_init__(self) -> None:
        counts, others = (self.frames, self.sample_count), (self.fps, self.duration, self.sample_fps)
        if not all(isinstance(value, int) and 0 < value <= MOST for value in counts):
            raise ValueError(f"frames and sample_count must be whole numbers from 1 to {MOST:,}: {self}")
        if not all(isinstance(value, int | float) and 0 < value <= MOST for value in others):
            raise ValueError(f"rates and the duration must be above 0, and {MOST:,} at most: {self}")

    def position(self, seconds: float) -> float:
        """Place among the kept frames of a time: its place in the file times kept over all frames, as AFSD has it."""
        return seconds * self.fps * self.sample_count / self.frames


def read_video(
    path: str | PathLike[str],
    fps: float | None = None,
    size: tuple[int, int] = (112, 112),
    frames: int | None = None,
    rate: float | None = None,
    reader: str = "pyav",
) -> tuple[Frames, VideoInfo]:
    """A whole video (N, H, W, 3), RGB, and what it is; arguments and errors as `VideoFile`."""
    video = VideoFile(path, fps, size, frames, rate, reader)
    return video.read(), video.info


class VideoFile:
    """A video file from which any stretch of kept frames can be read.

    Args:
        fps: wanted frames a second; a file below it keeps all that it has. None keeps every frame.
        size: (H, W) of the kept frames.
        frames: the most that may be kept: the rate is lowered to fps * min(frames / frames of the file, 1), as
            ActivityNet's files are sampled.
        rate: frames a second of a file that has no time stamps, such as a bare H.264 stream.
        reader: "pyav", or "decord" where that is installed.
        threads: of PyAV's decoder; 0 takes what the machine has.
        short_side: in place of `size`: pixels of the frames' shorter side, their shape kept.

    Raises:
        UserError: one line that names a missing, damaged or foreign file, one without frames or without a rate.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        fps: float | None = None,
        size: tuple[int, int] = (112, 112),
        frames: int | None = None,
        rate: float | None = None,
        reader: str = "pyav",
        threads: int = 0,
        short_side: int | None = None,
    ) -> None:
        check_sampling(fps, size, frames, rate, reader)
        self.path, self.size, self.short_side = regular_file(path, "video"), size, short_side
        self.source: _PyAV | _Decord = _Decord(self.path) if reader == "decord" else _PyAV(self.path, rate, threads)
        times, source_fps = self.source.times, self.source.fps
        count, variable = len(times), is_variable(times)
        ends = np.append(times[1:], times[-1] + 1 / source_fps) if variable else np.arange(1, count + 1) / source_fps
        wanted = [source_fps, *([fps] if fps else []), *([source_fps * min(frames / count, 1)] if frames else [])]
        self.kept = kept_frames(ends if variable else count, source_fps, min(wanted))[:frames]
        if not len(self.kept):
            raise UserError(f"{self.path} lasts {ends[-1]:.3g} s, which is no frame at {min(wanted):g} a second")
        try:
            self.info = VideoInfo(source_fps, count, float(ends[-1]), min(wanted), len(self.kept), variable)
        except ValueError as error:
            raise UserError(f"{self.path} cannot be: {error}") from error

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, start: int = 0, stop: int | None = None, step: int = 1) -> Frames:
        """Kept frames start, start + step, ... before stop, (N, H, W, 3).

        Raises:
            UserError: there is none, and what `stream` raises.
        """
        found = list(self.stream(start, stop, step))
        if not found:
            raise UserError(f"{self.path} has {len(self)} frames and none from {start} to {stop}")
        return np.stack(found)

    def stream(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Frames]:
        """Kept frames start, start + step, ... one by one, each (H, W, 3): a long video fills no memory.

        A frame that cannot be decoded is replaced by the one before it.

        Raises:
            UserError: more than a tenth of the stretch cannot be decoded.
        """
        wanted = self.kept[start:stop:step].tolist()
        if not wanted:
            return
        done = decoded = 0
        before: Any = None
        for place, picture in self.source.pictures(wanted):
            decoded += wanted[0] <= place <= wanted[-1]
            while done < len(wanted) and wanted[done] < place:
                yield self._small(picture if before is None else before)
                done += 1
            if done == len(wanted):
                break
            if wanted[done] == place:
                small = self._small(picture)
                while done < len(wanted) and wanted[done] == place:
                    yield small
                    done += 1
            before = picture
        expected = self.source.expected(wanted)
        if decoded < LEAST_DECODED * expected:
            raise UserError(f"{self.path} is damaged: {decoded} of {expected} frames can be decoded")
        for _ in wanted[done:]:
            yield self._small(before)

    def _small(self, picture: Any) -> Frames:
        """A decoded picture upright, RGB, bicubic to (H, W)."""
        pixels = picture if isinstance(picture, np.ndarray) else _upright(picture)
        height, width = pixels.shape[:2]
        size = self.size
        if self.short_side:
            scale = self.short_side / min(height, width)
            size = (round(height * scale), round(width * scale))
        if (height, width) == size:
            return pixels
        resized = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(resized)


def check_sampling(
    fps: float | None, size: tuple[int, int], frames: int | None, rate: float | None, reader: str
) -> None:
    """Refuse arguments of `VideoFile` that no file can have.

    Raises:
        UserError: a number that is not above 0, an unknown reader, or one that is not installed.
    """
    for name, value in (("fps", fps), ("frames", frames), ("rate", rate), ("size", min(size))):
        if value is not None and not value > 0:
            raise UserError(f"{name} {value} of a video: give more than 0")
    if reader not in READERS:
        raise UserError(f"reader {reader!r} is none of {', '.join(READERS)}")
    if reader == "decord":
        _decord()


def is_variable(times: NDArray[np.float64]) -> bool:
    """Whether a frame begins half a frame or more from where it would at an even rate."""
    even = np.linspace(times[0], times[-1], len(times))
    return len(times) > 2 and bool(np.abs(times - even).max() >= (times[-1] - times[0]) / (2 * (len(times) - 1)))


def kept_frames(ends: NDArray[np.float64] | int, fps: float, wanted: float) -> NDArray[np.int64]:
    """Which frames are kept.

    Args:
        ends: of the frames in seconds, for a variable rate; a number is that of a file's frames of even rate.
        fps: of the file. wanted: frames a second, at most `fps`.
    """
    if not isinstance(ends, int):
        ticks = np.arange(1, int(ends[-1] * wanted + 1e-6) + 1) / wanted
        return np.minimum(np.searchsorted(ends, ticks - 1e-6), len(ends) - 1).astype(np.int64)
    step, counter, kept = fps / wanted, 0.0, []
    for i in range(ends):
        counter += 1
        if counter >= step:
            counter -= step
            kept.append(i)
    return np.array(kept, np.int64)


def video_files(folder: str | PathLike[str]) -> dict[str, Path]:
    """The video files of a folder by their names without suffix.

    Raises:
        UserError: no folder, no video in it, or two files of one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder of videos at {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise UserError(f"{found[path.stem]} and {path} have one name; keep one of them")
            found[path.stem] = path
    if not found:
        raise UserError(f"no video in {folder}; files of {' '.join(SUFFIXES)} are looked for")
    return found


def _upright(picture: av.VideoFrame) -> Frames:
    """(H, W, 3) as a viewer shows it: telephones store the turn beside the pixels."""
    pixels: Frames = picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    turns = round(getattr(picture, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


class _PyAV:
    """Time stamps and pictures of a file by FFmpeg's libraries."""

    def __init__(self, path: Path, rate: float | None, threads: int) -> None:
        self.path, self.threads = path, threads
        with self._opened() as (container, stream):
            packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
            if not packets:
                raise UserError(f"{path} holds no frame")
            stamped = not container.format.flags & av.format.Flags.no_timestamps.value
            stamps = [p.pts for p in packets] if stamped else [None]
            known = float(stream.average_rate) if stamped and stream.average_rate else rate
            self.stamps = None if None in stamps else np.unique(np.array(stamps, np.int64))
            if self.stamps is not None and len(self.stamps) > 1:
                self.times = (self.stamps - self.stamps[0]) * float(stream.time_base)
                measured = (len(self.times) - 1) / float(self.times[-1])
                even = known is not None and not is_variable(self.times) and abs(known / measured - 1) < 0.01
                self.fps = known if even and known else measured
            elif known:
                self.fps, self.times = known, np.arange(len(packets)) / known
            else:
                raise UserError(f"{path} has no time stamps, so its frame rate is unknown: give it (--rate 25)")
            self._check_length(container, stream)

    def _check_length(self, container: Any, stream: Any) -> None:
        """A file that was cut off still claims the seconds that it once had."""
        claimed = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if not claimed and container.duration and len(container.streams) == 1:
            claimed = container.duration / av.time_base
        there = float(self.times[-1]) + 1 / self.fps
        if there < LEAST_DECODED * claimed:
            raise UserError(f"{self.path} is cut off: {there:.1f} of its {claimed:.1f} s are there")

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        try:
            with av.open(str(self.path), metadata_errors="ignore") as container:
                if not container.streams.video:
                    raise UserError(f"{self.path} holds no video stream")
                yield container, container.streams.video[0]
        except EOFError as error:  # behind the header
            raise UserError(f"{self.path} holds no frame") from error
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"{self.path} cannot be read as a video: {error.strerror}") from error

    def expected(self, wanted: list[int]) -> int:
        """Frames of the file between the first and the last wanted one."""
        return int(wanted[-1] - wanted[0] + 1)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {} if self.stamps is None else {int(stamp): place for place, stamp in enumerate(self.stamps)}

    def pictures(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """(place, picture) in order, from the key frame before the first wanted one to the last that can be decoded."""
        first, last = wanted[0], wanted[-1]
        if first and self.stamps is not None:
            found = self._decoded(int(self.stamps[first]))
            start = next(found, None)
            if start and start[0] <= first:  # some containers go to a key frame behind the place that is asked for
                yield from _until(last, chain([start], found))
                return
        yield from _until(last, self._decoded(None))

    def _decoded(self, stamp: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """(place, picture) from the key frame that the container finds for a time stamp, or from the beginning."""
        with self._opened() as (container, stream):
            stream.thread_type, stream.codec_context.thread_count = "AUTO", self.threads
            if stamp is not None:
                container.seek(stamp, stream=stream)
            place = -1
            for packet in container.demux(stream):
                try:
                    pictures = packet.decode()
                except av.error.FFmpegError:  # a damaged packet; what can be decoded is counted
                    continue
                for picture in pictures:
                    place = self._places.get(picture.pts, place + 1) if self._places else place + 1
                    yield place, picture


def _until(last: int, pictures: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[tuple[int, av.VideoFrame]]:
    for place, picture in pictures:
        yield place, picture
        if place >= last:
            return


class _Decord:
    """Time stamps and pictures of a file by decord, which decodes the wanted frames alone."""

    def __init__(self, path: Path) -> None:
        decord = _decord()
        try:
            self.video = decord.VideoReader(str(path))
            self.fps = float(self.video.get_avg_fps())
            self.times = np.asarray(self.video.get_frame_timestamp(range(len(self.video))), np.float64)[:, 0]
        except Exception as error:  # decord has an error of its own for each kind of fault
            raise UserError(f"{path} cannot be read as a video: {str(error).splitlines()[0]}") from error
        self.times = self.times - self.times[0]

    def expected(self, wanted: list[int]) -> int:
        return len(set(wanted))

    def pictures(self, wanted: list[int]) -> Iterator[tuple[int, Frames]]:
        """(place, (H, W, 3)) of the wanted frames."""
        for place in dict.fromkeys(wanted):
            yield place, self.video[place].asnumpy()


def _decord() -> Any:
    try:
        return importlib.import_module("decord")
    except ImportError:
        raise UserError("decord is not installed: pip install decord, or take reader pyav") from None
