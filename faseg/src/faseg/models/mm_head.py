"""FASeg's parts in mmsegmentation's registry: a decode head and the two backbones, for its `EncoderDecoder`.

    model = dict(
        type="EncoderDecoder",
        data_preprocessor=dict(type="SegDataPreProcessor", size_divisor=32, test_cfg=dict(size_divisor=32), ...),
        backbone=dict(type="FASegSwin", name="swin_t", pretrained="swin_tiny_patch4_window7_224.pth"),
        decode_head=dict(type="FASegHead", in_channels=[96, 192, 384, 768], num_classes=150),
        test_cfg=dict(mode="whole"),
    )

`import faseg` registers them as soon as mmsegmentation is there. The head takes the maps of any backbone with strides
4, 8, 16 and 32. Its options turn each part of the paper on or off.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor

from faseg.method.criterion import Criterion, Losses
from faseg.method.matcher import Matcher, Targets
from faseg.method.semantic_inference import semantic_scores
from faseg.models.faseg import SegmentationHead
from faseg.models.released import read_backbone
from faseg.models.resnet import ResNet
from faseg.models.swin import SIZES, Swin
from paperkit.errors import UserError
from paperkit.files.weights import load_strict


@MODELS.register_module()
class FASegHead(SegmentationHead):
    """Pixel decoder, transformer decoder and losses as mmsegmentation's `EncoderDecoder` calls a decode head.

    Args:
        in_channels: of the backbone's maps. num_classes: K, two or more.
        ignore_index: label of pixels that belong to no mask.
        num_points: at which masks are matched and the losses are taken.
        head: further arguments of `faseg.models.faseg.SegmentationHead`: conv_dim, mask_dim, key_pos, decoder, ...

    Raises:
        UserError: one class, which mmsegmentation reads as a logit of foreground, and not as a score.
    """

    align_corners = False

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        ignore_index: int = 255,
        num_points: int = 12544,
        **head: Any,
    ) -> None:
        if num_classes < 2:
            raise UserError(f"num_classes {num_classes}: give two or more, the background among them")
        super().__init__(in_channels, num_classes, **head)
        self.num_classes = self.out_channels = num_classes
        self.ignore_index = ignore_index
        self.criterion = Criterion(num_classes, Matcher(num_points))

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: Sequence[Any], train_cfg: Any = None) -> Losses:
        """Weighted losses of all outputs, from the backbone's maps and samples with `gt_sem_seg`.

        No full mask is made: the losses take the mask features and the embeddings of the matched queries.

        Raises:
            UserError: a label that is no class, with the name of its picture. The next number would be trained as "no
                object".
        """
        pixels = self.pixel_decoder(inputs)
        predictions = self.predictor.outputs(pixels.features, pixels.positions, pixels.mask_features)
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in batch_data_samples])
        targets = Targets.of_maps(labels, self.ignore_index)
        for sample, present in zip(batch_data_samples, targets.labels.tolist(), strict=True):
            if wrong := [label for label in present if not 0 <= label < self.num_classes]:
                raise UserError(
                    f"{getattr(sample, 'seg_map_path', 'a label map')} holds the label {max(wrong)}; the head has the "
                    f"classes 0 to {self.num_classes - 1}, and {self.ignore_index} for nothing"
                )
        return self.criterion.weigh(self.criterion(predictions, pixels.mask_features, targets))

    def predict(self, inputs: Sequence[Tensor], batch_img_metas: Sequence[Any], test_cfg: Any = None) -> Tensor:
        """Scores (B, K, H, W) at the size of the padded input: sums of probabilities, which take no softmax.

        mmsegmentation cuts the padding off and resizes them to the picture's own size, as the authors do.
        """
        outputs = self(inputs, masks="last")
        height, width = inputs[0].shape[2:]
        size = 4 * height, 4 * width
        pairs = zip(outputs["pred_logits"], outputs["pred_masks"], strict=True)
        return torch.stack([semantic_scores(logits, masks, size, size) for logits, masks in pairs])


@MODELS.register_module()
class FASegResNet(ResNet):
    """ResNet-50 of `faseg.models.resnet`, from a file of ImageNet weights or fresh.

    Args:
        pretrained: file of torchvision, timm, mmseg or detectron2.
        options: of `ResNet`: norm `FrozenBN` (ADE20K), `SyncBN` (Cityscapes) or `BN`, and its sizes.
    """

    def __init__(self, pretrained: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        _start(self, pretrained)


@MODELS.register_module()
class FASegSwin(Swin):
    """A Swin Transformer of `faseg.models.swin`, from a file of ImageNet weights or fresh.

    Args:
        name: `swin_t`, `swin_b` or `swin_l`.
        pretrained: file of the authors, of timm or of mmseg.
        changes: of the size's arguments.
    """

    def __init__(self, name: str = "swin_t", pretrained: str | None = None, **changes: Any) -> None:
        if name not in SIZES:
            raise UserError(f"Swin '{name}' is none of {', '.join(SIZES)}")
        options: Mapping[str, Any] = {**SIZES[name], **changes}
        super().__init__(**options)
        _start(self, pretrained)


def _start(backbone: ResNet | Swin, pretrained: str | None) -> None:
    if pretrained:
        if not Path(pretrained).expanduser().exists():
            raise UserError(
                f"no ImageNet weights at {pretrained}: put the file there, or name another place with --cfg-options "
                "model.backbone.pretrained=FILE (None starts without)"
            )
        load_strict(backbone, read_backbone(pretrained, backbone), pretrained)
