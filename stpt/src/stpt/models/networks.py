"""The networks by name: STPT's pyramid, its ablations, a tiny one for tests, and the I3D that it is compared with.

The paper gives the idea and its cost, no table of sizes. These are chosen so that everything that is known holds: a
global layer right after the patch embedding of a 256x96x96 clip costs 1044 G multiply-accumulates for its products
(the paper: "more than 1000G"); stages 3 and 4 have the map sizes of I3D's Mixed_4f and Mixed_5c, so that AFSD's
detector fits; and backbone and head cost 112.4 G, 31 % less than AFSD on RGB and flow.
"""

from typing import Any

from paperkit.errors import UserError
from stpt.method.backbone import Backbone
from stpt.models.i3d import I3D

STPT: dict[str, Any] = dict(
    dims=(96, 192, 384, 768),
    depths=(1, 2, 11, 2),
    heads=(1, 2, 4, 8),
    kernels=((3, 7, 7), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((2, 4, 4), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
    windows=((8, 8, 8), (8, 6, 6), (8, 6, 6), (8, 3, 3)),
    reductions=((1, 1, 1), (1, 1, 1), (1, 2, 2), (1, 1, 1)),
)
"""Arguments of `Backbone`; every one is a choice made here."""
TINY: dict[str, Any] = {**STPT, "dims": (32, 64, 128, 256), "depths": (1, 1, 2, 1)}
I3D_NAME = "i3d"
BACKBONES: dict[str, dict[str, Any]] = {
    "stpt": STPT,
    "stpt_tiny": TINY,
    # Local and global attention by stage.
    **{f"stpt_{kinds.lower()}": {**STPT, "kinds": kinds} for kinds in ("LLLL", "LLLG", "LGGG", "GGGG")},
    # Windows of both early stages.
    "stpt_window_8x6x6": {**STPT, "windows": ((8, 6, 6), (8, 6, 6), (8, 6, 6), (8, 3, 3))},
    # 3D convolution in place of local attention, and attention factorised into space and time in place of joint.
    "stpt_ccgg": {**STPT, "kinds": "CCGG"},
    "stpt_llff": {**STPT, "kinds": "LLFF"},
    "stpt_ffff": {**STPT, "kinds": "FFFF"},
    # Where a token learns its place.
    "stpt_cpe_stage": {**STPT, "cpe": "stage"},
    "stpt_cpe_none": {**STPT, "cpe": "none"},
    "stpt_abs": {**STPT, "cpe": "none", "pos_embed": "abs", "size": (256, 96, 96)},
    # ActivityNet's clips of 768 frames: as many keys as on THUMOS14.
    "stpt_768": {**STPT, "reductions": ((1, 1, 1), (1, 1, 1), (3, 2, 2), (1, 1, 1))},
    I3D_NAME: {},
}


def create_backbone(name: str = "stpt", **changes: Any) -> Backbone | I3D:
    """A backbone by name, with fresh weights.

    Args:
        name: one of `BACKBONES`. changes: arguments of `Backbone` in place of the name's own.

    Raises:
        UserError: no such name, or arguments that `Backbone` refuses.

    Example:
        >>> maps = create_backbone("stpt")(torch.randn(1, 3, 256, 96, 96))  # (1, 384, 64, 6, 6), (1, 768, 32, 3, 3)
    """
    if not isinstance(name, str) or name not in BACKBONES:
        raise UserError(f"backbone {name!r} is none of {', '.join(BACKBONES)}")
    try:
        return I3D(**changes) if name == I3D_NAME else Backbone(**{**BACKBONES[name], **changes})
    except (TypeError, ValueError) as error:
        raise UserError(f"backbone {name}: {error}") from error
