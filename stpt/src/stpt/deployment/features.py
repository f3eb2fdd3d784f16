"""Features of a video file: the backbone's map, averaged over space, a row for every few frames.

Shapes: N frames of the video at the network's rate, C channels, T' rows.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from paperkit.errors import UserError
from stpt.deployment.precision import inference_in
from stpt.deployment.searching import SearchedVideo


def video_features(
    video: SearchedVideo, stage: int, advance: Callable[[int], object] = lambda windows: None
) -> tuple[Tensor, int]:
    """Rows (T', C) in float32, and the frames that a row stands for; T' = N over these, rounded up.

    Where windows overlap, each gives its rows up to the middle of the overlap: a row is never next to a border that
    only its window has.

    Args:
        video: opened with the network.
        stage: whose map, from 1; one of those that the backbone gives.
        advance: told of windows that are done.

    Raises:
        UserError: the backbone does not give that stage's map.
    """
    given = [number + 1 for number in getattr(video.network.backbone, "out_stages", (2, 3))]
    if stage not in given:
        raise UserError(f"stage {stage}: the network's backbone gives the maps of {', '.join(map(str, given))}")
    rows: list[Tensor] = []
    with inference_in(video.how.precision, video.device):
        for maps in video.maps():
            found = maps[given.index(stage)].float().mean((3, 4)).transpose(1, 2).cpu()
            rows.extend(found)
            advance(len(found))
    frames = video.length // len(rows[0])
    # Between two windows the middle of what both see, in rows. The last window ends with the video: where its offset
    # is no whole number of rows, its rows are taken for those that follow by less than one.
    end = -(-len(video.video) // frames)
    starts = [min(-(-offset // frames), max(0, end - len(rows[0]))) for offset in video.offsets]
    middles = [(start + before + len(rows[0])) // 2 for before, start in pairwise(starts)]
    cuts = [0, *middles, end]
    parts = [
        row[cut - start : stop - start] for row, start, cut, stop in zip(rows, starts, cuts, cuts[1:], strict=False)
    ]
    return torch.cat(parts), frames
