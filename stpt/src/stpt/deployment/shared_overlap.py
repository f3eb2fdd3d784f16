"""Windows that overlap, with the first stages run once over every frame instead of once a window.

Windows of 256 frames at every 128th see each frame twice. The first stages look at local windows only, and these lie
on one grid of the video where a clip's offset is a multiple of the grid: the first stages can then run over the video
as over one long clip, piece by piece, and each clip cuts its part of their map. Every stage takes a piece with a halo
on both sides that reaches as far as its blocks look, from the kept map of the stage below, so that cutting into pieces
changes nothing. What changes is the border of a clip: alone, its first and last frames meet zeros there; cut from the
video, they meet the neighbouring frames. That difference is the drift, which `drift` measures.

Shapes: T frames of a video, H, W pixels; C channels of the map of the first stages, t its cells.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from stpt.method.attention import LocalAttention
from stpt.method.backbone import Backbone, LocalConvolution, PositionalConvolution, Stage

FEWEST = 4
"""Cells of a grid step, at least: more than the convolutions before a block's attention see beside a cell."""
Frames = Callable[[int, int], Tensor]
"""First frame and the one behind the last -> a clip (1, 3, T, H, W), as the backbone takes it."""


@dataclass(frozen=True)
class Shared:
    """What clips of a video can share.

    Attributes:
        grid: frames; a clip shares where its offset is a multiple.
        strides: frames a cell of each shared stage's map, from the first stage on.
        halos: frames on either side of a piece that each stage needs of the map below; multiples of the grid.
    """

    grid: int
    strides: tuple[int, ...]
    halos: tuple[int, ...]


def shared_part(backbone: Backbone) -> Shared:
    """The leading stages that look at local windows only, below those whose maps leave the backbone.

    Raises:
        UserError: the first stage looks at the whole clip, or positions in a clip are learned.
    """
    grid, stride, strides, reaches = 1, 1, [], []
    for stage in list(backbone.stages)[: min(backbone.out_stages)]:
        assert isinstance(stage, Stage)
        if stage.pos_time is not None:
            raise UserError("windows share nothing: the network adds a learned embedding of a frame's place in a clip")
        mixers = [block.attn for block in stage.blocks]
        if not all(isinstance(mixer, LocalAttention | LocalConvolution) for mixer in mixers):
            break
        stride *= stage.patch_embed.proj.stride[0]
        grid = math.lcm(grid, *(stride * mixer.window[0] for mixer in mixers if isinstance(mixer, LocalAttention)))
        strides.append(stride)
        # A convolution behind the only block carries what it saw one cell further.
        reaches.append(max(len(mixers), 2 if isinstance(stage.cpe, PositionalConvolution) else 1))
    if not strides:
        raise UserError("windows share nothing: the first stage of the network looks at the whole clip")
    grid *= -(-FEWEST * stride // grid)
    # A block sees its own windows, and cells beside them through its convolutions: less than a grid step further.
    return Shared(grid, tuple(strides), tuple(grid * reach for reach in reaches))


class _StageOfVideo:
    """A stage's map of a video, computed forwards and kept from where it is still asked for.

    Args:
        stage: of the backbone. below: gives the map below, or the frames, between two frames of the video.
        length: frames of the video. stride, halo: see `Shared`.
    """

    def __init__(self, stage: nn.Module, below: Frames, length: int, stride: int, halo: int) -> None:
        self.stage, self.below, self.length, self.stride, self.halo = stage, below, length, stride, halo
        self.kept: Tensor | None = None  # the cells of frames [first, end)
        self.first = self.end = 0

    def __call__(self, low: int, high: int) -> Tensor:
        """Cells of frames [low, high); `low` never falls from call to call."""
        if self.kept is None or low >= self.end:
            self.kept, self.end = None, low
        else:
            self.kept = self.kept[:, :, (low - self.first) // self.stride :]
        self.first = low
        if self.end < high:
            begin, behind = max(0, self.end - self.halo), min(self.length, high + self.halo)
            cells = self.stage(self.below(begin, behind))
            cells = cells[:, :, (self.end - begin) // self.stride : -(-(high - begin) // self.stride)]
            self.kept = cells if self.kept is None else torch.cat([self.kept, cells], 2)
            self.end = high
        assert self.kept is not None
        return self.kept[:, :, : -(-(high - low) // self.stride)]


def overlapping_maps(
    backbone: Backbone, frames: Frames, length: int, offsets: Sequence[int], clip: int, piece: int
) -> Iterator[list[Tensor]]:
    """The backbone's maps of every clip, the first stages run once a frame.

    Args:
        backbone: in eval mode.
        frames: of the video.
        length: T, its number of frames; every clip lies inside of it.
        offsets: of the clips, ascending, multiples of the grid.
        clip: frames of a clip.
        piece: frames that the first stages take at a time besides their halo: more spend less on halos and take more
            memory.

    Yields:
        For each clip what `backbone` gives for it.

    Raises:
        UserError: as `shared_part`; or an offset or the clip's length is no multiple of the grid.
    """
    shared = shared_part(backbone)
    if wrong := [offset for offset in (*offsets, clip) if offset % shared.grid]:
        raise UserError(f"windows share frames in steps of {shared.grid}; {wrong[0]} is no multiple of it")
    below, count = frames, len(shared.strides)
    for stage, stride, halo in zip(backbone.stages, shared.strides, shared.halos, strict=False):
        below = _StageOfVideo(stage, below, length, stride, halo)
    piece, end = max(1, piece // shared.grid) * shared.grid, offsets[0]
    for offset in offsets:
        while end < offset + clip:  # piece by piece, the last one up to the video's end
            end = min(max(end, offset) + piece, length)
            below(offset, end)
        maps = [below(offset, offset + clip)]
        for stage in backbone.stages[count:]:
            maps.append(stage(maps[-1]))
        yield [maps[number - count + 1] for number in backbone.out_stages]


def drift(alone: Sequence[Tensor], cut: Sequence[Tensor]) -> list[float]:
    """For each map: the root mean square of the difference over that of the map."""
    pairs = zip(alone, cut, strict=True)
    return [float((a - b).float().square().mean().sqrt() / a.float().square().mean().sqrt()) for a, b in pairs]
