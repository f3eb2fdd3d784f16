"""ResNet as detectron2 has it (He et al., "Deep Residual Learning", CVPR 2016): stride 2 in the 3x3 convolution.

Maps of strides 4, 8, 16 and 32 come out. Names are detectron2's, `stem.conv1` and `res2.0.conv1.norm`; those of
torchvision, timm and mmseg, which agree among each other, are translated by `to_torchvision` and `from_torchvision`.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from paperkit.errors import UserError

NORMS = {"FrozenBN": FrozenBatchNorm2d, "BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
"""`FrozenBN` has fixed statistics and fixed factors, as on ADE20K; `SyncBN` is trained, over all processes."""


class ConvNorm(nn.Conv2d):
    """Convolution without bias, then batch norm under the name `norm`.

    A frozen norm is a factor and a shift of each channel, so it goes into the convolution: no map between the two is
    made or kept for the backward pass.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: str) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = NORMS[norm](outputs)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        norm = self.norm
        if not isinstance(norm, FrozenBatchNorm2d):
            return norm(super().forward(x))
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self._conv_forward(x, self.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1, each with its norm; the shortcut is a 1x1 where the shape changes."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, norm) if stride > 1 or inputs != outputs else None
        self.conv1 = ConvNorm(inputs, width, 1, 1, norm)
        self.conv2 = ConvNorm(width, width, 3, stride, norm)
        self.conv3 = ConvNorm(width, outputs, 1, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = F.relu(self.conv1(x), inplace=True)
        y = F.relu(self.conv2(y), inplace=True)
        return F.relu(self.conv3(y) + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class Stem(nn.Module):
    """7x7 with stride 2, norm, ReLU, and a maximum over 3x3 with stride 2."""

    def __init__(self, outputs: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, outputs, 7, 2, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, outputs, H / 4, W / 4)."""
        return F.max_pool2d(F.relu(self.conv1(x), inplace=True), 3, 2, 1)


class ResNet(nn.Module):
    """ResNet of bottlenecks; the defaults are ResNet-50.

    Args:
        blocks: of each stage. stem, width, outputs: channels of the stem, and of the first stage inside and behind its
            blocks; each later stage has twice as many. norm: one of `NORMS`.

    Raises:
        UserError: an unknown norm.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 4, 6, 3),
        stem: int = 64,
        width: int = 64,
        outputs: int = 256,
        norm: str = "FrozenBN",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise UserError(f"norm '{norm}' is none of {', '.join(NORMS)}")
        self.stem = Stem(stem, norm)
        self.channels = [outputs * 2**stage for stage in range(4)]
        inputs = stem
        for stage, count in enumerate(blocks):
            built = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                built.append(Bottleneck(inputs, width * 2**stage, self.channels[stage], stride, norm))
                inputs = self.channels[stage]
            self.add_module(f"res{stage + 2}", nn.Sequential(*built))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps of strides 4, 8, 16 and 32, channels innermost: convolutions are faster so."""
        x, maps = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for stage in range(2, 6):
            x = self.get_submodule(f"res{stage}")(x)
            maps.append(x)
        return maps


_TO_TORCHVISION = (
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.", ""),
    (r"^res(\d)\.", lambda m: f"layer{int(m[1]) - 1}."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)
_FROM_TORCHVISION = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
)


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `ResNet` under the names of torchvision, timm and mmseg."""
    return {_renamed(key, _TO_TORCHVISION): value for key, value in state.items()}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision, timm or mmseg under the names of a `ResNet`; the classifier is left out."""
    return {
        _renamed(key, _FROM_TORCHVISION): value for key, value in state.items() if not key.startswith(("fc.", "head."))
    }


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether these are weights under torchvision's names."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= state.keys()


def _renamed(key: str, rules: Sequence[tuple[str, object]]) -> str:
    for pattern, new in rules:
        key = re.sub(pattern, new, key)  # type: ignore[call-overload]
    return key
