"""RetinaNet and Mask R-CNN on torchvision's detectors with a LITv2 backbone (section 4.2 of the paper).

The authors train with mmdetection; here torchvision's detectors take the same backbone, pyramid, anchor sizes, matching
thresholds, sampling and test settings. What differs, so that heads of released files do not fit and published AP is
not claimed:

* classes: torchvision's Mask R-CNN has the background as class 0 (mmdetection: the last), and regresses a box for it;
  RetinaNet's labels start at 0 in both;
* anchors: torchvision rounds the corners of its base anchors to whole pixels;
* losses: Mask R-CNN's boxes use smooth L1 with beta 1/9 in both stages (mmdetection: L1), averaged over all sampled
  places; RetinaNet divides by each image's own objects (mmdetection: the whole batch's);
* RoIAlign: 2 x 2 samples a bin without the half-pixel shift (mmdetection: as many as fit, with it);
* P7 of RetinaNet takes a ReLU of P6 (mmdetection: P6 itself);
* names and initial weights of necks and heads are torchvision's.

Shapes: images are a list of (3, H, W) in [0, 1]; resizing to (800, 1333), normalising and padding to 32 is the
detector's.
"""

from pathlib import Path
from typing import Any, Literal

from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from litv2.models.backbone import DETECTION_NORMS, LITv2Backbone
from litv2.models.pyramid import architecture
from litv2.models.released import fit_released, read_released
from paperkit.doors.mask_rcnn import CHANNELS, PyramidFeatures, mask_rcnn
from paperkit.errors import UserError
from paperkit.files.weights import load_strict

Detector = Literal["retinanet", "mask_rcnn"]


def build_backbone(
    name: str, first: int, drop_path_rate: float, window: int, checkpointing: bool, **options: Any
) -> LITv2Backbone:
    """A published size with detection's norms, stages `first` to 3 returned, and a window of 2 or 4 in stage 3.

    Raises:
        UserError: a window below 2: plain attention has other shapes; options that describe no backbone for images of
            three channels.
    """
    if window < 2:
        raise UserError(f"window {window}: stage 3 takes 2 or more; the weights of plain attention (1) do not fit")
    sizes = {**architecture(name), "drop_path_rate": drop_path_rate, "local_ws": (0, 0, window, 1), **options}
    if (channels := sizes.get("in_chans", 3)) != 3:
        raise UserError(f"options: in_chans {channels}, but the images are read with 3 channels, grey ones too")
    try:
        return LITv2Backbone(
            out_indices=tuple(range(first, 4)), out_norms=DETECTION_NORMS, grad_checkpointing=checkpointing, **sizes
        )
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UserError(f"options do not describe a LITv2 backbone: {error}") from error


def build_detector(
    detector: Detector = "retinanet",
    name: str = "litv2_s",
    window: int = 2,
    num_classes: int = 80,
    weights: str | Path | None = None,
    drop_path_rate: float = 0.2,
    grad_checkpointing: bool = False,
    options: dict[str, Any] | None = None,
    min_size: int = 800,
    max_size: int = 1333,
    part: str | None = None,
) -> RetinaNet | MaskRCNN:
    """A detector by the paper's settings.

    Args:
        detector: "retinanet" (c3 to c5, two extra levels, anchors 4 * stride, 3 scales) or "mask_rcnn" (c2 to c5 and a
            pooled level, anchors 8 * stride).
        name: published size of the backbone.
        window: HiLo window of stage 3; free between 2 and more, whatever the weights were trained with.
        num_classes: object classes; label 0 is left to the background in Mask R-CNN, as torchvision has it.
        weights: classifier, detection or segmentation file whose backbone is loaded.
        drop_path_rate: 0.2 for S and M, 0.3 for B.
        grad_checkpointing: the paper's B detectors recompute their blocks.
        options: further changes of the backbone.
        min_size, max_size: of the resized image.
        part: which of several state dicts in the file of weights.

    Raises:
        UserError: options of the backbone that cannot be, or weights that do not fit it.
    """
    retina = detector == "retinanet"
    body = build_backbone(name, 1 if retina else 0, drop_path_rate, window, grad_checkpointing, **(options or {}))
    if weights:
        load_backbone(body, weights, part)
    if retina:
        scales = [2 ** (k / 3) for k in range(3)]
        anchors = AnchorGenerator(
            tuple(tuple(4 * stride * s for s in scales) for stride in (8, 16, 32, 64, 128)), ((0.5, 1.0, 2.0),) * 5
        )
        features = PyramidFeatures(body, LastLevelP6P7(body.out_channels[-1], CHANNELS))
        return RetinaNet(
            features, num_classes, anchor_generator=anchors, score_thresh=0.05, nms_thresh=0.5, detections_per_img=100,
            fg_iou_thresh=0.5, bg_iou_thresh=0.4, topk_candidates=1000, min_size=min_size, max_size=max_size,
        )  # fmt: skip
    if detector != "mask_rcnn":
        raise UserError(f"detector '{detector}' is unknown; there are retinanet and mask_rcnn")
    return mask_rcnn(body, num_classes, min_size, max_size)


def load_backbone(body: LITv2Backbone, path: str | Path, part: str | None = None) -> None:
    """The `backbone.*` of a released detector or segmenter, or a classifier, into a backbone, strictly.

    Norms that the file has and this backbone does not return are left out.
    """
    state = fit_released(read_released(path, part=part, part_advice="--detection.part"), body)
    unused = {f"norm{i}." for i in range(4) if i not in body.out_norms}
    load_strict(body, {key: t for key, t in state.items() if key[:6] not in unused}, str(path))
