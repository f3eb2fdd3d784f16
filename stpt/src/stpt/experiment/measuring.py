"""What a trained detector of the embedded experiment finds in clips, and what its outputs depend on.

Shapes: B clips, T frames, S side of a frame, K cells.
"""

import numpy as np
import torch
from torch import Tensor

from stpt.experiment.clips import FIRST, FRAMES, Clips, other_cue
from stpt.experiment.settings import REFINED, THRESHOLDS
from stpt.method.decoding import decode
from stpt.method.detection_map import Instances, mean_average_precision
from stpt.method.soft_nms import Detections, PostProcess, Windows, detections
from stpt.models.stpt import STPT

FORMS = {
    f"{REFINED}: coarse, all cells": (True, False),
    f"{REFINED}: coarse, soft-NMS": (True, True),
    f"{REFINED}: refined, all cells": (False, False),
    f"{REFINED}: refined, soft-NMS": (False, True),
}
"""What the refined arm is measured by: whether the refinement is left out, and whether soft-NMS follows."""
NO_SUPPRESSION = PostProcess(rule="hard", overlap=2.0)
"""No segments overlap so much: every candidate stays."""


@torch.no_grad()
def found_in(network: STPT, frames: Tensor, coarse: bool = False, suppress: bool = True) -> list[Detections]:
    """The detections of each clip, times in frames.

    Args:
        frames: (B, 1, T, S, S).
        coarse: leave the refinement out, where there is one.
        suppress: by soft-NMS.
    """
    segments, scores = decode(network.eval()(frames), FRAMES, coarse)
    each = zip(segments.numpy(), scores.numpy(), strict=True)
    windows = [Windows(spans[None], values[None], np.zeros(1), fps=1.0) for spans, values in each]
    return detections(windows, PostProcess() if suppress else NO_SUPPRESSION)


def precisions(network: STPT, clips: Clips, coarse: bool = False, suppress: bool = True) -> list[float]:
    """Mean average precision in % over the classes, at each of `THRESHOLDS`."""
    found = found_in(network, clips.frames, coarse, suppress)
    truth = [clips.of_clip(clip).numpy().astype(np.float64) for clip in range(len(clips.actions))]
    ours = Instances(
        _numbers(map(len, (each.labels for each in found))),
        np.concatenate([each.labels for each in found]),
        np.concatenate([each.segments for each in found]).astype(np.float64),
        np.concatenate([each.scores for each in found]).astype(np.float64),
    )
    theirs = Instances(
        _numbers(map(len, truth)),
        np.concatenate([actions[:, 2] for actions in truth]).astype(np.int64),
        np.concatenate([actions[:, :2] for actions in truth]) * FRAMES,
    )
    return (100 * mean_average_precision(ours, theirs, THRESHOLDS).mean).tolist()


def refinement(network: STPT, clips: Clips) -> dict[str, list[float]]:
    """`precisions` in each of `FORMS`."""
    return {name: precisions(network, clips, *form) for name, form in FORMS.items()}


@torch.no_grad()
def change_by_cue(network: STPT, clips: Clips) -> float:
    """Largest change of an output at cells from frame `FIRST` on when the band moves and nothing else changes.

    Only such cells can lie in an action.
    """
    ours, theirs = network.eval()(clips.frames), network(other_cue(clips))
    late = ours["priors"][0, :, 0] * FRAMES >= FIRST
    return max(float((ours[name] - theirs[name])[:, late].abs().max()) for name in ("loc", "conf"))


def _numbers(counts: "map[int]") -> np.ndarray:
    """0 as often as the first count says, then 1, and so on."""
    lengths = list(counts)
    return np.repeat(np.arange(len(lengths)), lengths)
