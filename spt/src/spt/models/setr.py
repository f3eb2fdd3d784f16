"""SETR-PUP for semantic segmentation (Zheng et al., CVPR 2021, section 3.3), the paper's network for ADE20K.

Neither its code nor its recipe was released. The table's sizes decide: a ViT-L/16 at 512 pixels with a progressive head
on block 24 and three auxiliary heads on blocks 10, 15 and 20, all of width 256, has 13.1 M parameters in the heads and
317.3 M in all, which are the table's own figures (a test counts them).

Shapes: B images, C channels, K classes, H x W pixels, h x w patches.
"""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.errors import UserError, one_line

IGNORED = 255  # label of pixels outside every class
AUXILIARY_WEIGHT = 0.4  # of each auxiliary head's loss
SIZES = {
    "vit_base_patch16_224": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large_patch16_224": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}


class UpsamplingHead(nn.Module):
    """LayerNorm, then 3 x 3 convolution, BatchNorm, ReLU and bilinear enlargement a few times, then K scores a pixel.

    Args:
        channels: C of the tokens.
        classes: K.
        convolutions: how many; the main head has four.
        scale: of each enlargement; four times 2 bring patches of 16 back to pixels.
        width: channels inside.
    """

    def __init__(self, channels: int, classes: int, convolutions: int, scale: int, width: int = 256) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        stages: list[nn.Module] = []
        for index in range(convolutions):
            inner = nn.Conv2d(width if index else channels, width, 3, padding=1, bias=False)
            grow = nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)
            stages.append(nn.Sequential(inner, nn.BatchNorm2d(width), nn.ReLU(inplace=True), grow))
        self.stages = nn.Sequential(*stages)
        self.scores = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.zeros_(self.scores.bias)  # type: ignore[arg-type]

    def forward(self, tokens_bchw: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, K, h scale^n, w scale^n)."""
        normed = self.norm(tokens_bchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.scores(self.stages(normed))


class SETR(VisionTransformer):
    """A ViT whose patch tokens after `taps` blocks go to one main and three auxiliary heads.

    The names of the trunk are the plain ViT's, so that its released files and SPT's selections fit as they are; every
    name of a head contains `head`, so that SPT trains and saves it whole.

    Args:
        classes: K.
        taps: indices of the blocks read, the main head's last.
        width: channels inside the heads.
        options: of timm's VisionTransformer.
    """

    def __init__(
        self, classes: int = 150, taps: tuple[int, ...] = (9, 14, 19, 23), width: int = 256, **options: Any
    ) -> None:
        super().__init__(num_classes=0, **options)
        if len(taps) < 1 or not all(0 <= tap < len(self.blocks) for tap in taps):
            raise UserError(f"taps {list(taps)} must be blocks of a trunk of {len(self.blocks)}")
        self.taps = tuple(taps)
        self.decode_head = UpsamplingHead(self.embed_dim, classes, 4, 2, width)
        self.auxiliary_heads = nn.ModuleList(
            UpsamplingHead(self.embed_dim, classes, 2, 4, width) for _ in self.taps[:-1]
        )

    def every_head(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> scores (B, K, H, W) of the main head, then of the auxiliary ones."""
        found: Any = self.forward_intermediates(images, indices=list(self.taps), norm=False, intermediates_only=True)
        heads = [self.decode_head, *self.auxiliary_heads]
        maps = [head(tokens) for head, tokens in zip(heads, [found[-1], *found[:-1]], strict=True)]
        size = images.shape[-2:]
        return [
            F.interpolate(m, size, mode="bilinear", align_corners=False) if m.shape[-2:] != size else m for m in maps
        ]

    def forward(self, images: Tensor) -> Any:  # type: ignore[override]
        """(B, 3, H, W) -> (B, K, H, W) of the main head; in training the list of all heads' scores."""
        if self.training:
            return self.every_head(images)
        found: Any = self.forward_intermediates(images, indices=[self.taps[-1]], norm=False, intermediates_only=True)
        scores = self.decode_head(found[-1])
        return F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)


def create_setr(arch: str, classes: int, size: int, drop_path: float = 0.0, **sizes: Any) -> SETR:
    """SETR-PUP on a ViT with 16-pixel patches, random weights.

    Raises:
        UserError: for an architecture without sizes here.
    """
    if arch not in SIZES:
        raise UserError(f"SETR stands on {', '.join(SIZES)}, not on {arch!r}")
    if sizes.get("in_chans", 3) != 3:
        raise UserError(f"in_chans {sizes['in_chans']} does not fit: pictures are read as RGB, with 3 channels")
    try:
        chosen: dict[str, Any] = {**SIZES[arch], **sizes}
        if "taps" in chosen:
            chosen["taps"] = tuple(chosen["taps"])
        return SETR(classes, img_size=size, drop_path_rate=drop_path, **chosen)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor makes of strange sizes
        raise UserError(f"no SETR can be built on {arch} with {sizes}: {one_line(str(error))[:200]}") from error


def segmentation_loss(scores: list[Tensor], labels: Tensor) -> Tensor:
    """Mean cross entropy of the main head plus 0.4 times that of each auxiliary head; labels (B, H, W), 255 ignored."""
    losses = [F.cross_entropy(one.float(), labels, ignore_index=IGNORED) for one in scores]
    return losses[0] + AUXILIARY_WEIGHT * sum(losses[1:], torch.zeros_like(losses[0]))


@torch.no_grad()
def sliding_scores(model: nn.Module, images: Tensor, classes: int, crop: int, stride: int) -> Tensor:
    """Mean probabilities (B, K, H, W) of windows of `crop` pixels every `stride`; the last ones end at the edge."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, max(0, crop - width), 0, max(0, crop - height)))
    full_height, full_width = padded.shape[-2:]
    total = images.new_zeros(images.shape[0], classes, full_height, full_width)
    seen = images.new_zeros(1, 1, full_height, full_width)
    for top in _starts(full_height, crop, stride):
        for left in _starts(full_width, crop, stride):
            window = (..., slice(top, top + crop), slice(left, left + crop))
            total[window] += model(padded[window]).float().softmax(1)
            seen[window] += 1
    return (total / seen)[..., :height, :width]


def _starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixels of the windows along one side."""
    steps = max(0, -(-(length - crop) // stride))
    return [min(step * stride, length - crop) for step in range(steps + 1)]
