"""STPT as mmengine's Runner trains it: clips of bytes in, losses or segments with scores out.

    model = dict(
        type="STPTDetector",
        data_preprocessor=dict(type="ClipPreprocessor"),
        backbone=dict(name="stpt"),
        detector=dict(num_classes=21, frames=256),
        loss=dict(),
    )

Shapes: B clips, T frames, H height, W width, K cells of the pyramid, C classes without the background.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor

from paperkit.errors import UserError
from paperkit.training.openmmlab import own_scope
from stpt.method.consistency import triplet
from stpt.method.decoding import decode
from stpt.method.losses import DetectionLoss
from stpt.method.targets import LEVEL_RANGES
from stpt.models.conversion import load_backbone
from stpt.models.stpt import STPT

OWN = own_scope("stpt")


@OWN.MODELS.register_module()
class ClipPreprocessor(BaseDataPreprocessor):
    """Stacks clips of bytes and brings them to [-1, 1].

    A short clip comes with black behind its pictures, which is -1 then. Where its sample says `pad_mode` "grey", frames
    from `frame_num` on are 0 instead.
    """

    def __init__(self) -> None:
        super().__init__(non_blocking=True)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Clips (3, T, H, W) of bytes -> `inputs` (B, 3, T, H, W) float; the samples stay as they are."""
        data = self.cast_data(data)
        return {"inputs": normalised(data["inputs"], data["data_samples"]), "data_samples": data["data_samples"]}


def normalised(clips: Sequence[Tensor], samples: Sequence[Any]) -> Tensor:
    """Clips in [-1, 1], and 0 behind the pictures of a sample that is filled up with grey."""
    stacked = torch.stack(list(clips)).float().div_(127.5).sub_(1)
    for clip, sample in zip(stacked, samples, strict=True):
        if sample.get("pad_mode") == "grey":
            clip[:, sample.frame_num :] = 0
    return stacked


@OWN.MODELS.register_module()
class STPTDetector(BaseModel):
    """Backbone, pyramid and heads, with AFSD's losses; children as in AFSD's checkpoints.

    Args:
        backbone: `name` of `stpt.models.networks.BACKBONES`, and changes of it.
        detector: arguments of `stpt.method.detector.Detector`.
        loss: options of `stpt.method.losses.DetectionLoss`; variant and frames are the detector's.
        size: height and width of clips.
        consistency: weight of the triplet loss on the spliced clips; 0 never looks at them.
        pretrained: weights that the backbone starts from; every kind that `load_backbone` knows.
        inflation: of a 2D network's convolutions, `mean` or `center`.
        data_preprocessor: `ClipPreprocessor`.

    Raises:
        UserError: options that do not fit, more levels than ActivityNet's losses have ranges for among them.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        detector: Mapping[str, Any],
        loss: Mapping[str, Any] | None = None,
        size: Sequence[int] = (96, 96),
        consistency: float = 0.1,
        pretrained: str | None = None,
        inflation: str = "mean",
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=dict(data_preprocessor or dict(type="stpt.ClipPreprocessor")))
        network = STPT.from_settings(dict(backbone=dict(backbone), detector=dict(detector), size=size))
        self.backbone, self.coarse_pyramid_detection = network.backbone, network.coarse_pyramid_detection
        self.frames: int = detector.get("frames", 256)
        self.classes = int(detector.get("num_classes", 21)) - 1
        variant, levels = detector.get("variant", "thumos"), detector.get("levels", 6)
        if variant == "activitynet" and levels > len(LEVEL_RANGES):
            raise UserError(f"{levels} levels; ActivityNet's losses have ranges of lengths for {len(LEVEL_RANGES)}")
        try:
            self.losses = DetectionLoss(variant, self.frames, **(loss or {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"loss: {error}") from error
        self.weight = consistency
        if pretrained:
            load_backbone(self.backbone, pretrained, inflation)

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = "tensor") -> Any:
        """(B, 3, T, H, W) in [-1, 1] -> losses by name; samples with `pred_segments` and `pred_scores`; or raw outputs.

        `pred_segments` (K, 2) are in frames of the clip, `pred_scores` (K, C + 1) have the background first.

        Raises:
            UserError: a label that is no class, by its video.
        """
        outputs = self.coarse_pyramid_detection(self.backbone(inputs))
        if mode == "tensor" or data_samples is None:
            return outputs
        if mode == "predict":
            segments, scores = decode(outputs, self.frames)
            for sample, where, what in zip(data_samples, segments, scores, strict=True):
                sample.pred_segments, sample.pred_scores = where, what
            return data_samples
        total = sum(value.sum() for value in outputs.values() if value.requires_grad)
        if torch.isnan(total):  # the cross-entropy of frames would end in an assertion, on a GPU one that nobody reads
            return {"loss": total}
        masks = [torch.stack([sample.get(name) for sample in data_samples]) for name in ("start_mask", "end_mask")]
        losses = self.losses(outputs, [self._targets(sample) for sample in data_samples], *masks)
        if self.weight and (spliced := [sample for sample in data_samples if "splice_inputs" in sample]):
            # A mean over all clips: one that could not be spliced adds 0.
            losses["loss_consistency"] = self._consistency(spliced) * (self.weight * len(spliced) / len(data_samples))
        # A clip without an action must leave no weight without a gradient: several processes wait for all of them.
        losses["loss_c"] = losses["loss_c"] + 0 * total
        return losses

    def _targets(self, sample: Any) -> Tensor:
        """(n, 3): start and end as shares of the clip, label from 1 on."""
        labels = sample.gt_labels
        if wrong := [label for label in labels.tolist() if not 1 <= label <= self.classes]:
            raise UserError(f"{sample.video} has the label {wrong[0]}; the head has the classes 1 to {self.classes}")
        return torch.cat([sample.gt_segments.float() / self.frames, labels[:, None].float()], 1)

    def _consistency(self, spliced: Sequence[Any]) -> Tensor:
        """The triplet loss of clips with a spliced form of them."""
        maps = self.backbone(normalised([sample.splice_inputs for sample in spliced], spliced))
        segments = torch.stack([sample.splice_segments for sample in spliced])
        return triplet(*self.coarse_pyramid_detection.consistency(maps, segments))
