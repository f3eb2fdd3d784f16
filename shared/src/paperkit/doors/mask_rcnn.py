"""torchvision's Mask R-CNN over the feature maps of a backbone, with the settings that mmdetection's papers use.

Shapes: images are a list of (3, H, W) in [0, 1]; resizing, normalising and padding to 32 is the detector's.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

CHANNELS = 256


class PyramidFeatures(nn.Module):
    """Backbone and feature pyramid: (B, 3, H, W) -> name -> (B, 256, h, w).

    Args:
        body: gives a list of feature maps, finest first; `out_channels` are theirs, `out_indices` their names.
        extra: further levels.
    """

    def __init__(self, body: Any, extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.out_channels, CHANNELS, extra)
        self.out_channels = CHANNELS

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """All levels, finest first."""
        maps = self.body(x)
        return self.fpn(OrderedDict((str(i), y) for i, y in zip(self.body.out_indices, maps, strict=True)))


def mask_rcnn(body: Any, num_classes: int, min_size: int | Sequence[int], max_size: int) -> MaskRCNN:
    """Mask R-CNN: four maps of strides 4 to 32 and a pooled level, anchors of 8 * stride.

    Args:
        body: see `PyramidFeatures`; its maps are called 0 to 3.
        num_classes: object classes; label 0 is the background's.
        min_size: of the shorter side; of several, training draws one, evaluation takes the last. max_size: of the
            longer one.
    """
    anchors = AnchorGenerator(tuple((8 * stride,) for stride in (4, 8, 16, 32, 64)), ((0.5, 1.0, 2.0),) * 5)
    return MaskRCNN(
        PyramidFeatures(body, LastLevelMaxPool()), num_classes + 1, rpn_anchor_generator=anchors, rpn_nms_thresh=0.7,
        rpn_pre_nms_top_n_train=2000, rpn_pre_nms_top_n_test=1000, rpn_post_nms_top_n_train=1000,
        rpn_post_nms_top_n_test=1000, rpn_batch_size_per_image=256, rpn_positive_fraction=0.5,
        box_batch_size_per_image=512, box_positive_fraction=0.25, box_score_thresh=0.05, box_nms_thresh=0.5,
        box_detections_per_img=100, min_size=min_size, max_size=max_size,
    )  # fmt: skip
