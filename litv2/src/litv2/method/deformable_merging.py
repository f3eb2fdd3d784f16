"""Deformable token merging: 2x2 tokens become one, with learned sampling places (LITv1, section 3.3).

    offset  = conv_offset(x)                        2x2 stride-2 convolution, 8 channels: (dy, dx) for each of 4 taps
    y[p, q] = bias + sum_{i, j} weight[:, :, i, j] x(2p + i + dy, 2q + j + dx)          bilinear, 0 outside the map
    out     = GELU(BatchNorm(y))

This is deformable convolution version 1 (no modulation). Four forms compute it (`Form`):

    "gather"         weighted gather of channel rows, then one matrix product; the fast one. Any device, any gradient
    "deform_conv2d"  torchvision's operator; what the others are tested against
    "grid_sample"    four `grid_sample` calls and one product: exports everywhere (ONNX opset 16)
    "conv"           offsets dropped: a plain convolution. A faster model with other outputs, not an equal form

Sampling runs in float32 under autocast, as the authors' operator does.
Shapes: B batch, H x W tokens, C channels in, 2C out, T = 4 taps (t = 2 i + j), h = H // 2, w = W // 2.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

Form = Literal["auto", "gather", "deform_conv2d", "grid_sample", "conv"]


class DeformConv(nn.Module):
    """2x2 stride-2 deformable convolution C -> 2C on a channels-last map.

    The offsets' weights start at zero, so the layer starts as a plain convolution.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        plain = nn.Conv2d(dim, 2 * dim, 2, stride=2)  # its default initialisation is the authors' for this layer
        self.weight, self.bias = plain.weight, plain.bias
        self.conv_offset = nn.Conv2d(dim, 8, 2, stride=2)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Zero offsets: the layer samples where a plain convolution does."""
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def offsets(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, h, w, 8); channel 2t is dy and 2t + 1 is dx of tap t."""
        return self.conv_offset(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor, form: Form = "auto") -> Tensor:
        """(B, H, W, C) -> (B, h, w, 2C); odd sizes are floored."""
        if form == "auto":
            form = "grid_sample" if torch.compiler.is_exporting() else "gather"
        if form == "conv":
            return F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, stride=2).permute(0, 2, 3, 1)
        offset = self.offsets(x)
        dtype = torch.promote_types(x.dtype, torch.float32)  # no half precision, and float64 stays
        with torch.autocast(x.device.type, enabled=False):
            return self._sample(x.to(dtype), offset.to(dtype), form)

    def _sample(self, x: Tensor, offset: Tensor, form: Form) -> Tensor:
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if form == "deform_conv2d":
            arguments = [t.permute(0, 3, 1, 2).contiguous() for t in (x, offset)]
            return deform_conv2d(*arguments, weight, bias, stride=(2, 2)).permute(0, 2, 3, 1)
        sample = gather_taps if form == "gather" else grid_sample_taps
        taps_bhwtc = sample(x, tap_positions(offset))
        return F.linear(taps_bhwtc.flatten(3), weight.permute(0, 2, 3, 1).flatten(1), bias)


def tap_positions(offset: Tensor) -> Tensor:
    """(B, h, w, 8) -> (B, h, w, T, 2): the (y, x) in tokens at which each tap samples."""
    rows = 2 * torch.arange(offset.shape[1], device=offset.device, dtype=offset.dtype)
    columns = 2 * torch.arange(offset.shape[2], device=offset.device, dtype=offset.dtype)
    tap_y = offset.new_tensor([0, 0, 1, 1])
    tap_x = offset.new_tensor([0, 1, 0, 1])
    y = rows[:, None, None] + tap_y
    x = columns[None, :, None] + tap_x
    grid_hwt2 = torch.stack(torch.broadcast_tensors(y, x), dim=-1)
    return offset.unflatten(-1, (4, 2)) + grid_hwt2


def gather_taps(x: Tensor, positions: Tensor) -> Tensor:
    """Bilinear samples: (B, H, W, C), (B, h, w, T, 2) -> (B, h, w, T, C).

    Each sample is a weighted sum of four rows of C channels, which is what `embedding_bag` computes without holding the
    four rows. A corner outside the map has weight 0; clamping its index only keeps the read legal.
    """
    batch, height, width, channels = x.shape
    low = positions.detach().floor().nan_to_num(0.0)  # of a diverged network: the share below stays NaN
    high_share = positions - low  # carries the gradient to the offsets
    # clamped before the cast: a wild offset must not overflow the integer
    y0 = low[..., 0].clamp(-2, height + 1)
    x0 = low[..., 1].clamp(-2, width + 1)
    y_bhwt2 = torch.stack((y0, y0 + 1), dim=-1)
    x_bhwt2 = torch.stack((x0, x0 + 1), dim=-1)
    share_y = torch.stack((1 - high_share[..., 0], high_share[..., 0]), dim=-1)
    share_x = torch.stack((1 - high_share[..., 1], high_share[..., 1]), dim=-1)
    share_y = share_y * ((y_bhwt2 >= 0) & (y_bhwt2 < height))
    share_x = share_x * ((x_bhwt2 >= 0) & (x_bhwt2 < width))
    rows = y_bhwt2.clamp(0, height - 1).long() * width
    columns = x_bhwt2.clamp(0, width - 1).long()
    first = torch.arange(batch, device=x.device).view(-1, 1, 1, 1, 1, 1) * (height * width)
    index = first + rows[..., :, None] + columns[..., None, :]
    share = share_y[..., :, None] * share_x[..., None, :]
    sampled = F.embedding_bag(
        index.view(-1, 4), x.reshape(-1, channels), mode="sum", per_sample_weights=share.reshape(-1, 4)
    )
    return sampled.view(*positions.shape[:-1], channels)


def grid_sample_taps(x: Tensor, positions: Tensor) -> Tensor:
    """The same samples through `grid_sample`: with aligned corners and zero padding its border rule is the same one."""
    height, width = x.shape[1:3]
    # -1 and 1 are the centres of the first and last token; a map one token wide has no such axis, so it gets a second,
    # empty one. The extra zeros change nothing: outside the map counts as 0 anyway.
    image = F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1))
    grid = torch.stack((positions[..., 1] * (2 / width) - 1, positions[..., 0] * (2 / height) - 1), dim=-1)
    taps = [
        F.grid_sample(image, grid[:, :, :, t], mode="bilinear", padding_mode="zeros", align_corners=True)
        for t in range(4)
    ]
    return torch.stack(taps, dim=1).permute(0, 3, 4, 1, 2)


class DeformableMerging(nn.Module):
    """`GELU(BatchNorm(DeformConv(x)))`: (B, H, W, C) -> (B, H // 2, W // 2, 2C).

    The normalisation is BatchNorm2d in eval and train mode alike; its name in the released files is `norm_layer`.
    """

    def __init__(self, dim: int, form: Form = "auto") -> None:
        super().__init__()
        self.form: Form = form
        self.dconv = DeformConv(dim)
        self.norm_layer: nn.Module = nn.BatchNorm2d(2 * dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, h, w, 2C)."""
        y = self.dconv(x, self.form)
        return self.act(self.norm_layer(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
