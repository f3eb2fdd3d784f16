"""Whole networks: backbone, pixel decoder and transformer decoder, under the names of the released checkpoints.

Each part that the paper adds is an option of a head that is otherwise Mask2Former: `MASK2FORMER` turns all of them off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faseg.method.criterion import Criterion
from faseg.method.decoder import Decoder
from faseg.method.pixel_decoder import PixelDecoder
from faseg.method.semantic_inference import semantic_scores
from faseg.models.resnet import ResNet
from faseg.models.swin import SIZES, Swin
from paperkit.errors import UserError
from paperkit.files.hub import SavedInFolder

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet, RGB from 0 to 255."""
DIVISOR = 32
BACKBONES: dict[str, dict[str, Any]] = {
    "r50": dict(kind="resnet"),
    **{k: dict(kind="swin", **v) for k, v in SIZES.items()},
}
MASK2FORMER: dict[str, Any] = dict(
    key_pos="sine", decoder=dict(query_pos="learned", hrca=False, layers=9, attn_threshold=0.5)
)
"""Arguments of `FASeg` for the head that the paper starts from."""


@dataclass(frozen=True)
class Release:
    """A released network: constructor arguments, and its results in the authors' README.

    Attributes:
        options: of `FASeg`. miou, miou_multi: on the validation set, at one scale and at several with flips.
    """

    options: dict[str, Any]
    miou: float
    miou_multi: float | None


def _ade(backbone: str, shortest: int = 512) -> dict[str, Any]:
    return dict(backbone=backbone, num_classes=150, shortest=shortest, longest=4 * shortest)


RELEASES = {
    "ade_faseg_r50": Release(_ade("r50"), 48.3, 49.3),
    "ade_faseg_swin_ti": Release(_ade("swin_t"), 49.6, 51.3),
    "ade_faseg_swin_b": Release(_ade("swin_b", 640), 55.0, 56.0),
    "ade_faseg_swin_l": Release(_ade("swin_l", 640), 56.3, 57.7),
    "cityscapes_faseg_r50": Release(
        dict(backbone=dict(kind="resnet", norm="SyncBN"), num_classes=19, shortest=1024, longest=2048), 80.5, None
    ),
}


def build_backbone(name: str | Mapping[str, Any]) -> ResNet | Swin:
    """A backbone by its name in `BACKBONES`, or by `kind` (`resnet` or `swin`) and changed arguments.

    Raises:
        UserError: no such backbone.
    """
    if isinstance(name, str) and name not in BACKBONES:
        raise UserError(f"backbone '{name}' is none of {', '.join(BACKBONES)}")
    options = dict(BACKBONES[name] if isinstance(name, str) else name)
    kind = options.pop("kind", None)
    if kind not in ("resnet", "swin"):
        raise UserError(f"backbone of kind '{kind}'; the kinds are resnet and swin")
    return ResNet(**options) if kind == "resnet" else Swin(**options)


class SegmentationHead(nn.Module):
    """Pixel decoder and transformer decoder.

    Args:
        in_channels: of the backbone's maps, strides 4 to 32. num_classes: K. conv_dim: channels C. mask_dim: M.
        key_pos: source of key positions, see `PixelDecoder`. pixel_decoder, decoder: further arguments of the parts.
    """

    # Without this number in a file's metadata the authors' loader takes every key for an older one and renames it.
    _version = 2

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        conv_dim: int = 256,
        mask_dim: int = 256,
        key_pos: str = "conditional",
        pixel_decoder: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Key positions are not projected, so that both parts have the same channels.
        self.predictor = Decoder(num_classes, conv_dim, mask_dim=mask_dim, **(decoder or {}))
        levels = self.predictor.levels
        self.pixel_decoder = PixelDecoder(
            in_channels, conv_dim, mask_dim, key_pos=key_pos, levels=levels, **(pixel_decoder or {})
        )

    def forward(self, features: Sequence[Tensor], masks: str = "all") -> dict[str, Any]:
        """Backbone maps -> the decoder's outputs (see `Decoder`, `masks` too), and `mask_features`."""
        pixels = self.pixel_decoder(features)
        outputs = self.predictor(pixels.features, pixels.positions, pixels.mask_features, masks=masks)
        return {**outputs, "mask_features": pixels.mask_features}


class FASeg(
    nn.Module,
    SavedInFolder,
    library_name="faseg",
    pipeline_tag="image-segmentation",
    repo_url="https://github.com/ziplab/FASeg",
    paper_url="https://arxiv.org/abs/2204.01244",
):
    """A whole network; the defaults are the released `ade_faseg_r50`.

    Args:
        backbone: name in `BACKBONES`, or `kind` and arguments, see `build_backbone`.
        num_classes: K. conv_dim, mask_dim, key_pos, pixel_decoder, decoder: see `SegmentationHead`.
        class_names: of the K classes, if known.
        shortest, longest: sides that a picture is brought to before it is segmented, in pixels.

    Example:
        >>> scores = FASeg("swin_t").eval().segment([image])[0]  # (3, H, W) uint8 -> (150, H, W)
    """

    def __init__(
        self,
        backbone: str | Mapping[str, Any] = "r50",
        num_classes: int = 150,
        conv_dim: int = 256,
        mask_dim: int = 256,
        key_pos: str = "conditional",
        pixel_decoder: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        shortest: int = 512,
        longest: int = 2048,
    ) -> None:
        super().__init__()
        if class_names is not None and len(class_names) != num_classes:
            raise UserError(f"{len(class_names)} class_names for {num_classes} classes")
        self.num_classes, self.class_names = num_classes, class_names
        self.shortest, self.longest = shortest, longest
        self.backbone = build_backbone(backbone)
        self.sem_seg_head = SegmentationHead(
            self.backbone.channels, num_classes, conv_dim, mask_dim, key_pos, pixel_decoder, decoder
        )
        self.criterion = Criterion(num_classes)

    def forward(self, images: Tensor, masks: str = "all") -> dict[str, Any]:
        """Normalised and padded pictures (B, 3, H, W) -> outputs of `SegmentationHead`."""
        return self.sem_seg_head(self.backbone(images), masks)

    @torch.inference_mode()
    def segment(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """Scores of each class at each pixel.

        Args:
            images: RGB from 0 to 255, (3, H, W) each; `faseg predict` brings them to `shortest` and `longest` before.
            sizes: height and width of each result; None for those of the picture.

        Returns:
            (K, H, W) each: sums of probabilities, no logits.
        """
        weight = next(self.parameters())
        batch = padded_batch([image.to(weight.device) for image in images]).to(weight.dtype)
        outputs = self(batch, masks="last")
        sizes = sizes or [(image.shape[1], image.shape[2]) for image in images]
        padded = batch.shape[2], batch.shape[3]
        return [
            semantic_scores(logits, masks, padded, (image.shape[1], image.shape[2]), size)
            for logits, masks, image, size in zip(
                outputs["pred_logits"], outputs["pred_masks"], images, sizes, strict=True
            )
        ]


def padded_batch(images: Sequence[Tensor]) -> Tensor:
    """Normalises pictures (3, H, W) and pads them with 0 below and to the right, to one size and multiples of 32."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    height, width = (-(-side // DIVISOR) * DIVISOR for side in (height, width))
    mean, std = (torch.tensor(values, device=images[0].device)[:, None, None] for values in (MEAN, STD))
    return torch.stack([F.pad((i - mean) / std, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])


def build(name: str, device: str | torch.device = "cpu", **changes: Any) -> FASeg:
    """A released network by name, with fresh weights.

    Args:
        name: one of `RELEASES`. device: "meta" for one without memory. changes: of the constructor's arguments.

    Raises:
        UserError: no such release.
    """
    if name not in RELEASES:
        raise UserError(f"'{name}' is no release; there are {', '.join(RELEASES)}")
    with torch.device(device):
        return FASeg(**{**RELEASES[name].options, **changes})
