"""Mask R-CNN of torchvision over a Swin whose attention is binary (section 4.4, tables 9 and A).

The authors train with mmdetection; what torchvision's detector does otherwise stands in `paperkit.doors.mask_rcnn` and
the README, so published AP is not claimed. Maps are padded to whole windows inside Swin with exact zeros, whose signs
are 0: their q, k and v come from the bias alone. timm pads after the shift, Microsoft's code before it.

Shapes: B batch, H x W image, C channels of a stage, h x w its map.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from bivit.models.architectures import build_float
from bivit.models.binarize import BinaryConfig
from bivit.models.keys import SCALE, begin
from paperkit.doors.mask_rcnn import mask_rcnn
from paperkit.errors import UserError

BUILT_FOR = 896
"""px, at which every stage is larger than its window, so that every second block shifts, as at any larger size."""

WITHOUT_DECAY = ("absolute_pos_embed", "relative_position_bias_table", "norm", SCALE)


class SwinFeatures(nn.Module):
    """The four maps of a Swin, each through a LayerNorm of its own: (B, 3, H, W) -> [(B, C, h, w)] of strides 4 to 32.

    Args:
        name: timm's name.
        binary: what is binary of the blocks.
        state: weights of the classifier by timm's names; None leaves them as drawn.
        options: further arguments of timm's constructor.

    Raises:
        UserError: a network that is no Swin, or weights that do not fit.
    """

    out_indices = (0, 1, 2, 3)

    def __init__(
        self,
        name: str,
        binary: BinaryConfig,
        state: Mapping[str, Tensor] | None = None,
        source: str = "the weights",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not name.startswith("swin_"):
            raise UserError(f"detection.name {name}: the detector's backbone is a Swin, swin_tiny_patch4_window7_224")
        body: Any = build_float(name, 0, {"img_size": BUILT_FOR, "strict_img_size": False, **dict(options or {})})
        body.norm, body.head = nn.Identity(), nn.Identity()  # of the classifier
        own = body.state_dict() if state is None else state
        begin(body, binary, {k: v for k, v in own.items() if not k.startswith(("norm.", "head."))}, source)
        self.body = body
        self.out_channels = [info["num_chs"] for info in body.feature_info]
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.out_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        x, maps = self.body.patch_embed(images), []
        for layer, norm in zip(self.body.layers, self.norms, strict=True):
            x = layer(x)  # (B, h, w, C)
            maps.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return maps


def build_detector(
    name: str,
    binary: BinaryConfig,
    num_classes: int = 80,
    state: Mapping[str, Tensor] | None = None,
    source: str = "the weights",
    min_sizes: tuple[int, ...] = (800,),
    max_size: int = 1333,
    options: Mapping[str, Any] | None = None,
) -> MaskRCNN:
    """The detector; `state` and `options` are those of `SwinFeatures`.

    Args:
        num_classes: object classes.
        min_sizes: of the shorter side; training draws one, evaluation takes the last. max_size: of the longer one.

    Raises:
        UserError: as `SwinFeatures`.
    """
    return mask_rcnn(SwinFeatures(name, binary, state, source, options), num_classes, min_sizes, max_size)


def is_without_decay(name: str) -> bool:
    """Whether a parameter has no weight decay: Swin's rule, and the scales of binary layers."""
    return any(
        part in name for part in ("absolute_pos_embed", "relative_position_bias_table", "norm", "scaling_factor")
    )
