"""I3D (Carreira and Zisserman, CVPR 2017) as AFSD uses it, under the names of its released files.

Inflated Inception: 3x3x3 convolutions and pools with TensorFlow's "same" padding, which depends on the input's size and
may be larger behind than before. 12.29 M parameters. Its BatchNorm stays frozen in AFSD: statistics and weights.

Shapes: B batch, C channels, T frames, H height, W width; maps (B, C, T, H, W).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stpt.method.convolutions import Unit3D, pad_same

MIXED: dict[str, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Channels that come in, and those of the branches b0, b1a, b1b, b2a, b2b, b3b."""
POOLS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
"""Kernel and stride of the maximum that is taken before a layer."""
OUTPUTS = ("Mixed_4f", "Mixed_5c")


def same_max_pool(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Maximum over cubes of a map padded with zeros, which take part."""
    return F.max_pool3d(pad_same(x, kernel, stride), tuple(kernel), tuple(stride))


class Inception(nn.Module):
    """Four branches beside each other: 1x1x1; 1x1x1 and 3x3x3, twice; maximum and 1x1x1.

    Args:
        in_channels: C. widths: channels of b0, b1a, b1b, b2a, b2b, b3b.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit3D(in_channels, b0)
        self.b1a, self.b1b = Unit3D(in_channels, b1a), Unit3D(b1a, b1b, (3, 3, 3))
        self.b2a, self.b2b = Unit3D(in_channels, b2a), Unit3D(b2a, b2b, (3, 3, 3))
        self.b3b = Unit3D(in_channels, b3b)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, b0 + b1b + b2b + b3b, T, H, W)."""
        pooled = same_max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class InceptionI3D(nn.Module):
    """The layers, under the names of rgb_imagenet.pt and flow_imagenet.pt, without the classifier.

    Args:
        in_channels: 3 for RGB, 2 for optical flow.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(in_channels, 64, (7, 7, 7), (2, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, (3, 3, 3))
        for name, (channels, widths) in MIXED.items():
            self.add_module(name, Inception(channels, widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Clips -> the maps of `OUTPUTS`."""
        x = x.contiguous(memory_format=torch.channels_last_3d)  # 1.3 to 2.4 times as fast on a CPU
        maps = []
        for name, layer in self.named_children():
            if name in POOLS:
                x = same_max_pool(x, *POOLS[name])
            x = layer(x)
            if name in OUTPUTS:
                maps.append(x)
        return maps


class I3D(nn.Module):
    """AFSD's backbone, its layers below `_model.`.

    Args:
        in_channels: 3 for RGB, 2 for optical flow.
        freeze_bn: keep BatchNorm's statistics and weights as they are in training (AFSD).
        freeze_bn_affine: whether its weights are kept too.
    """

    out_channels = (832, 1024)

    def __init__(self, in_channels: int = 3, freeze_bn: bool = True, freeze_bn_affine: bool = True) -> None:
        super().__init__()
        self._model = InceptionI3D(in_channels)
        self.freeze_bn = freeze_bn
        if freeze_bn and freeze_bn_affine:
            for norm in self._norms():
                norm.requires_grad_(False)

    def _norms(self) -> list[nn.BatchNorm3d]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm3d)]

    def train(self, mode: bool = True) -> "I3D":
        """As torch's, but BatchNorm stays in eval mode where it is frozen."""
        super().train(mode)
        if self.freeze_bn:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Clips (B, 3, T, H, W) in [-1, 1] -> (B, 832, T/4, H/16, W/16) and (B, 1024, T/8, H/32, W/32)."""
        return self._model(x)

    def map_sizes(self, frames: int, height: int, width: int) -> list[tuple[int, ...]]:
        """Sizes T', H', W' of the two maps; every stride rounds up."""
        size = (frames, height, width)
        return [
            tuple(-(-side // s) for side, s in zip(size, strides, strict=True))
            for strides in ((4, 16, 16), (8, 32, 32))
        ]


def from_imagenet_file(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of rgb_imagenet.pt or flow_imagenet.pt under the names of `I3D`; the classifier is left out."""
    return {f"_model.{key}": value for key, value in state.items() if not key.startswith("logits.")}
