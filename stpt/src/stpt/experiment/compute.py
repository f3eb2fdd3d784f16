"""What the patterns cost: counted on the meta device, exact, in seconds."""

import torch

from stpt.experiment.clips import FRAMES, SIDE
from stpt.experiment.network import build
from stpt.experiment.settings import LLGG, ExperimentConfig
from stpt.experiment.summary import AFSD, HEAD
from stpt.method.macs import Macs, count_macs
from stpt.models.networks import create_backbone
from stpt.models.stpt import STPT

PATTERNS = ("LLLL", "LLLG", LLGG, "LGGG", "GGGG")
CLIP = (1, 3, 256, 96, 96)


def macs_of(pattern: str) -> Macs:
    """Of the paper's network at the paper's size, with another pattern."""
    with torch.device("meta"):
        return count_macs(create_backbone("stpt", kinds=pattern), CLIP)


def count_whole() -> dict[str, float]:
    """Pattern, head or AFSD -> billion multiply-accumulates of one clip of 256 frames of 96 x 96 pixels.

    AFSD runs its whole network twice, on RGB and on optical flow; computing the flow is not in it.
    """
    patterns = {pattern: macs_of(pattern).total for pattern in PATTERNS}
    ours = _network("stpt", 3)
    afsd = sum(_network("i3d", channels).total for channels in (3, 2))
    counts = {**patterns, HEAD: ours.total - ours.of("backbone"), AFSD: afsd}
    return {name: macs / 1e9 for name, macs in counts.items()}


def count_small(config: ExperimentConfig) -> dict[str, tuple[float, int]]:
    """Arm -> million multiply-accumulates of one clip of the experiment, and parameters."""
    found = {arm: count_macs(build(arm, config.channels), (1, 1, FRAMES, SIDE, SIDE)) for arm in config.arms}
    return {arm: (macs.total / 1e6, macs.params) for arm, macs in found.items()}


def _network(backbone: str, channels: int) -> Macs:
    """A backbone with AFSD's head."""
    with torch.device("meta"):
        return count_macs(STPT({"name": backbone, "in_channels": channels}), (CLIP[0], channels, *CLIP[2:]))
