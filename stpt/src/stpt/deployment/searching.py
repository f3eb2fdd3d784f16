"""A video file through a network, window by window: the backbone's maps and the decoded cells.

Shapes: W windows, K cells of a window, C classes, T frames of a window.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paperkit.errors import UserError
from stpt.deployment.frame_buffer import FrameBuffer
from stpt.deployment.precision import PRECISIONS, inference_in
from stpt.deployment.shared_overlap import drift, overlapping_maps, shared_part
from stpt.method.backbone import Backbone
from stpt.method.decoding import decode
from stpt.method.windows import window_offsets
from stpt.models.stpt import STPT
from stpt.training.videos import VideoFile

MARGIN = 7 / 6
"""Side of a frame over that of the square which is cut from it: 112 over 96."""
RATE = 10.0
"""Frames a second of THUMOS14's clips, where a network does not say its own."""


@dataclass(frozen=True)
class Search:
    """How a video is cut and computed.

    Attributes:
        stride: frames from a window to the next; 0 for half a window.
        batch: windows that are computed at a time.
        share: compute the first stages once for frames that windows share.
        precision: one of `stpt.deployment.precision.PRECISIONS`.
        rate: frames a second of a file without time stamps.
        reader: of video files, `pyav` or `decord`.
    """

    stride: int = 0
    batch: int = 1
    share: bool = False
    precision: str = "float32"
    rate: float | None = None
    reader: str = "pyav"


def search_of(options: Any, **more: Any) -> Search:
    """A search by the options of a command that have its names, and `more`."""
    given = {field.name: getattr(options, field.name) for field in fields(Search) if hasattr(options, field.name)}
    return Search(**{**given, **more})


class Drift(NamedTuple):
    """What sharing changed in a window; prints as words.

    Attributes:
        maps: for each map the root mean square of the difference over that of the map.
        score: largest change of a class's score.
        frames: largest change of a segment's end, among cells with a score above a bound.
    """

    maps: list[float]
    score: float
    frames: float

    def __str__(self) -> str:
        maps = ", ".join(f"{100 * value:.2g} %" for value in self.maps)
        return f"maps drift by {maps}, scores by {self.score:.2g} and ends by {self.frames:.2g} frames at most"


class Cells(NamedTuple):
    """Segments (W, K, 2) in frames of their windows, scores (W, K, C + 1), and the drift where it was measured."""

    segments: Tensor
    scores: Tensor
    drift: Drift | None


class SearchedVideo:
    """A video as windows of a network's length.

    Args:
        network: in eval mode. path: of the video file. how: see `Search`.

    Raises:
        UserError: a file that is no whole video, windows that cannot share, or an option that cannot be.
    """

    def __init__(self, network: STPT, path: str | PathLike[str], how: Search) -> None:
        detector, size = network.settings["detector"], network.settings["size"]
        self.length: int = detector.get("frames", 256)
        whole = detector.get("variant", "thumos") == "activitynet"  # one clip a video, sampled to fit
        if how.batch < 1 or how.stride < 0 or how.precision not in PRECISIONS:
            raise UserError(
                f"batch {how.batch}, stride {how.stride}, precision {how.precision!r}: give a batch of 1 or more, a "
                f"stride of 0 or more, and {', '.join(PRECISIONS)}"
            )
        frames = [round(side * MARGIN) for side in size]
        rate = network.settings["fps"] or (None if whole else RATE)
        self.video = VideoFile(path, rate, (frames[0], frames[1]), self.length if whole else None, how.rate, how.reader)
        self.network, self.how = network, how
        self.device = next(network.parameters()).device
        stride = how.stride or self.length // 2
        self.offsets = window_offsets(len(self.video), self.length, stride)
        self._piece, self._shared, halo = how.batch * self.length, 0, 0
        if how.share:
            part = shared_part(self._backbone())
            if wrong := [number for number in (self.length, stride) if number % part.grid]:
                raise UserError(f"windows share frames in steps of {part.grid}; {wrong[0]} is no multiple of it")
            halo = sum(part.halos)
            inside = [o for o in self.offsets if o % part.grid == 0 and o + self.length <= len(self.video)]
            self._shared = len(inside) if len(inside) > 1 else 0  # of the windows, from the first on
        self.frames = FrameBuffer(self.video, size, self.length + self._piece + 2 * halo, self.device)

    def _backbone(self) -> Backbone:
        if not isinstance(self.network.backbone, Backbone):
            raise UserError("windows share nothing: I3D looks beyond any window; only STPT's local stages do not")
        return self.network.backbone

    def maps(self) -> Iterator[list[Tensor]]:
        """The backbone's maps of some windows at a time, in order; call it inside `inference_in`."""
        alike, rest = self.offsets[: self._shared], self.offsets[self._shared :]
        if alike:
            sizes = len(self.video), alike, self.length, self._piece
            yield from overlapping_maps(self._backbone(), self.frames.clip, *sizes)
        for first in range(0, len(rest), self.how.batch):
            yield self.network.backbone(torch.cat([self._clip(o) for o in rest[first : first + self.how.batch]]))

    def cells(self, above: float = 0.01, advance: Callable[[int], object] = lambda windows: None) -> Cells:
        """Every window decoded.

        Args:
            above: cells with a score of a class above it count for the drift of segments.
            advance: is told how many windows were done, time and again.
        """
        segments, scores, drifted = [], [], None
        with inference_in(self.how.precision, self.device):
            for number, maps in enumerate(self.maps()):
                where, what = self._decoded(maps)
                if number == self._shared // 2 < self._shared:
                    drifted = self._drift(number, maps, where, what, above)
                segments.append(where.cpu())
                scores.append(what.cpu())
                advance(len(where))
        return Cells(torch.cat(segments), torch.cat(scores), drifted)

    def _decoded(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        segments, scores = decode(self.network.coarse_pyramid_detection(maps), self.length)
        return segments.float(), scores.float()

    def _drift(self, number: int, maps: list[Tensor], segments: Tensor, scores: Tensor, above: float) -> Drift:
        """Of a window whose first stages were shared."""
        alone = self.network.backbone(self._clip(self.offsets[number]))
        where, what = self._decoded(alone)
        sure = what[..., 1:].amax(2) > above
        moved = float((segments - where)[sure].abs().max()) if sure.any() else 0.0
        return Drift(drift(alone, maps), float((scores - what)[..., 1:].abs().max()), moved)

    def _clip(self, offset: int) -> Tensor:
        return self.frames.clip(offset, offset + self.length)
