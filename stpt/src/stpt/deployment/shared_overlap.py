"""Windows that overlap, with the first stages run once over every frame instead of once a window.

Windows of 256 frames at every 128th see each frame twice. The first stages look at local windows only, and these lie
on one grid of the video where a clip's offset is a multiple of the grid: the first stages can then run over the video
as over one long clip, piece by piece, and each clip cuts its part of their map. A piece runs with a halo on both sides
that reaches as far as those stages look, so that cutting into pieces changes nothing. What changes is the border of a
clip: alone, its first and last frames meet zeros there; cut from the video, they meet the neighbouring frames. That
difference is the drift, which `drift` measures.

Shapes: T frames of a video, H, W pixels; C channels of the map of the first stages, t its cells.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from stpt.method.attention import LocalAttention
from stpt.method.backbone import Backbone, LocalConvolution, Stage

FEWEST = 4
"""Cells of a grid step, at least: more than the convolutions before a block's attention see beside a cell."""
Frames = Callable[[int, int], Tensor]
"""First frame and the one behind the last -> a clip (1, 3, T, H, W), as the backbone takes it."""


@dataclass(frozen=True)
class Shared:
    """What clips of a video can share.

    Attributes:
        stages: how many stages, from the first on.
        stride: frames a cell of their map.
        grid: frames; a clip shares where its offset is a multiple.
        halo: frames on either side that decide about a cell, at most; a multiple of the grid.
    """

    stages: int
    stride: int
    grid: int
    halo: int


def shared_part(backbone: Backbone) -> Shared:
    """The leading stages that look at local windows only, below those whose maps leave the backbone.

    Raises:
        UserError: the first stage looks at the whole clip, or positions in a clip are learned.
    """
    stride, grid, blocks, stages = 1, 1, 0, 0
    for stage in list(backbone.stages)[: min(backbone.out_stages)]:
        assert isinstance(stage, Stage)
        if stage.pos_time is not None:
            raise UserError("windows share nothing: the network adds a learned embedding of a frame's place in a clip")
        mixers = [block.attn for block in stage.blocks]
        if not all(isinstance(mixer, LocalAttention | LocalConvolution) for mixer in mixers):
            break
        stride *= stage.patch_embed.proj.stride[0]
        grid = math.lcm(grid, *(stride * mixer.window[0] for mixer in mixers if isinstance(mixer, LocalAttention)))
        blocks, stages = blocks + len(mixers), stages + 1
    if not stages:
        raise UserError("windows share nothing: the first stage of the network looks at the whole clip")
    grid *= -(-FEWEST * stride // grid)
    # A block sees its own windows, and cells beside them through its convolutions: less than a grid step further.
    return Shared(stages, stride, grid, grid * blocks)


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
        piece: frames that the first stages take at a time besides their halo: more are faster and take more memory.

    Yields:
        For each clip what `backbone` gives for it.

    Raises:
        UserError: as `shared_part`; or an offset or the clip's length is no multiple of the grid.
    """
    shared = shared_part(backbone)
    if wrong := [offset for offset in (*offsets, clip) if offset % shared.grid]:
        raise UserError(f"windows share frames in steps of {shared.grid}; {wrong[0]} is no multiple of it")
    first_stages, last_stages = nn.Sequential(*backbone.stages[: shared.stages]), backbone.stages[shared.stages :]
    piece = max(1, piece // shared.grid) * shared.grid
    kept: Tensor | None = None  # the cells of frames [first, end)
    first = end = 0
    for offset in offsets:
        if kept is None or offset >= end:
            kept, end = None, offset
        else:
            kept = kept[:, :, (offset - first) // shared.stride :]
        first = offset
        while end < offset + clip:
            upto = min(end + piece, length)
            low, high = max(0, end - shared.halo), min(length, upto + shared.halo)
            cells = first_stages(frames(low, high))
            cells = cells[:, :, (end - low) // shared.stride : -(-(upto - low) // shared.stride)]
            kept, end = cells if kept is None else torch.cat([kept, cells], 2), upto
        assert kept is not None
        maps = [kept[:, :, : clip // shared.stride]]
        for stage in last_stages:
            maps.append(stage(maps[-1]))
        yield [maps[number - shared.stages + 1] for number in backbone.out_stages]


def drift(alone: Sequence[Tensor], cut: Sequence[Tensor]) -> list[float]:
    """For each map: the root mean square of the difference over that of the map."""
    pairs = zip(alone, cut, strict=True)
    return [float((a - b).float().square().mean().sqrt() / a.float().square().mean().sqrt()) for a, b in pairs]
