"""AFSD's checkpoints: described by their names and shapes.

`checkpoint-{epoch}.ckpt` is a bare state dict of `backbone._model.*` (I3D) and `coarse_pyramid_detection.*`, for RGB or
optical flow, THUMOS14 or ActivityNet. The names are ours. STPT's own weights were never released.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from paperkit.errors import UserError
from stpt.models.networks import I3D_NAME

HEAD, STEM = "coarse_pyramid_detection.", "backbone._model.Conv3d_1a_7x7.conv3d.weight"
FRAMES = {"thumos": 256, "activitynet": 768}
STRIDES = (16, 32)
"""Pixels that a cell of I3D's two maps covers along height and width."""


def describe_released(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Settings of the network (`stpt.models.stpt.STPT`) that a file of AFSD holds.

    The clips' length leaves no trace in weights: it is 256 frames for the form of THUMOS14, and 768 for ActivityNet's.

    Raises:
        UserError: keys that are not AFSD's.
    """
    classes, first = f"{HEAD}conf_head.conv1d.weight", f"{HEAD}pyramids.0.0.conv3d.weight"
    if lacking := [key for key in (STEM, classes, first) if key not in state]:
        raise UserError(f"{source} is no checkpoint of AFSD: no {lacking[0]} among {len(state)} keys")
    variant = "thumos" if f"{HEAD}pyramids.1.0.conv3d.weight" in state else "activitynet"
    num_classes, channels = state[classes].shape[:2]
    levels = sum(key.startswith(f"{HEAD}loc_heads.") for key in state)
    # The first convolution is as large as the map that it squeezes: the first of THUMOS14's two, the last elsewhere.
    stride = STRIDES[0 if variant == "thumos" else 1]
    detector = dict(variant=variant, num_classes=num_classes, frames=FRAMES[variant], levels=levels, channels=channels)
    return {
        "backbone": {"name": I3D_NAME, "in_channels": state[STEM].shape[1]},
        "detector": detector,
        "size": [stride * side for side in state[first].shape[3:]],
    }
