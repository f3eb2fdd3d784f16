"""Convolutions with the "same" padding of TensorFlow, under the key names of AFSD and I3D (`conv1d.*`, `conv3d.*`).

The padding depends on the length: k - s zeros in all, or k - t mod s where s does not divide t, none if that is
negative; the odd one stands at the end. Shapes: B clips, C channels, T time, H height, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of a given size."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pads the last axes, one for each entry of `kernel`, with zeros."""
    sizes = x.shape[-len(kernel) :]
    pads = [same_padding(*axis) for axis in zip(sizes, kernel, stride, strict=True)]
    return F.pad(x, [zeros for pair in reversed(pads) for zeros in pair]) if any(map(any, pads)) else x


class Unit1D(nn.Module):
    """Conv1d over time with bias: (B, C, T) -> (B, out, ceil(T / stride))."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        # An odd kernel of stride 1 is padded alike on both sides, which the convolution itself does.
        self.by_hand = stride != 1 or kernel % 2 == 0
        self.conv1d = nn.Conv1d(channels, out, kernel, stride, padding=0 if self.by_hand else kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, out, T')."""
        return self.conv1d(pad_same(x, self.conv1d.kernel_size, self.conv1d.stride) if self.by_hand else x)


class Unit3D(nn.Module):
    """Conv3d, then BatchNorm and ReLU where asked for (I3D: both and no bias; AFSD's pyramid: a bias and neither).

    Args:
        channels, out: of the input and the output.
        kernel, stride: time, height, width.
        spatial_valid: pads time only, so that a kernel as large as the map squeezes it.
        norm: BatchNorm3d (eps 1e-3, momentum 0.01) and ReLU after a convolution without bias.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        stride: tuple[int, int, int] = (1, 1, 1),
        spatial_valid: bool = False,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.spatial_valid = spatial_valid
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=not norm)
        self.bn = nn.BatchNorm3d(out, eps=1e-3, momentum=0.01) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, out, T', H', W')."""
        kernel, stride = self.conv3d.kernel_size, self.conv3d.stride
        if self.spatial_valid and kernel == (1, *x.shape[3:]) and stride[0] == 1 and self.bn is None:
            # All of the map at once: a linear layer of each frame, about twice as fast as the convolution on a CPU.
            frames = F.linear(x.transpose(1, 2).flatten(2), self.conv3d.weight.flatten(1), self.conv3d.bias)
            return frames.transpose(1, 2)[..., None, None]
        if self.spatial_valid:
            x = F.pad(x, (0, 0, 0, 0, *same_padding(x.shape[2], kernel[0], stride[0])))
        else:
            x = pad_same(x, kernel, stride)
        x = self.conv3d(x)
        return x if self.bn is None else torch.relu(self.bn(x))
