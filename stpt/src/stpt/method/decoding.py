"""From the detector's outputs to segments and scores (AFSD, 3.3, inference).

Shapes: B clips, K cells, N classes with the background (0).
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def refined_distances(loc: Tensor, prop_loc: Tensor) -> Tensor:
    """Coarse distances (..., 2) shifted by the refinement, which counts in half lengths of the coarse segment."""
    return loc + 0.5 * loc.sum(-1, keepdim=True) * prop_loc


def decode(outputs: Mapping[str, Tensor], frames: int, coarse: bool = False) -> tuple[Tensor, Tensor]:
    """Segments and scores of all cells.

    Args:
        outputs: of `stpt.method.detector.Detector`; without a refinement the coarse heads' alone.
        frames: of the clip, to which segments are cut.
        coarse: leaves the refinement out, for comparison.

    Returns:
        (B, K, 2) start and end in frames of the clip, in 0 to `frames`, and (B, K, N) scores, background first.
    """
    wide = {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in outputs.items()}
    distances, scores = wide["loc"], wide["conf"].softmax(-1)
    if "prop_loc" in wide and not coarse:
        distances = refined_distances(distances, wide["prop_loc"])
        scores = 0.5 * (scores + wide["prop_conf"].softmax(-1)) * wide["center"].sigmoid()
    centre = wide["priors"][..., 0] * frames
    segments = torch.stack([centre - distances[..., 0], centre + distances[..., 1]], -1)
    return segments.clamp(0, frames), scores
