"""The pixel decoder: backbone maps to mask features, four feature maps and the key positions of each (section 3.1).

Mask2Former's (deformable encoder over strides 32, 16 and 8, one pyramid step to stride 4) with another source of key
positions: a depth-wise convolution of the projected map, `conditional`, in place of sine waves. With `key_pos="sine"`
and three levels it is Mask2Former's own, weights and all. Shapes: B batch, C channels, l = 0..3 for strides 32 to 4,
H_l x W_l the size of a level.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faseg.method.deformable_attention import DeformableAttention, Shapes, cell_centres
from paperkit.errors import UserError

KEY_POSITIONS = ("conditional", "sine", "learned")
GROUPS = 32
LONGEST_SIDE = 64
"""Entries of a learned position on each axis; maps of other sizes take them resized."""


class PixelFeatures(NamedTuple):
    """What the pixel decoder gives.

    Attributes:
        mask_features: (B, mask_dim, H_3, W_3). features: maps (B, C, H_l, W_l), coarse to fine.
        positions: key positions of the same shapes.
    """

    mask_features: Tensor
    features: list[Tensor]
    positions: list[Tensor]


class ConvNorm(nn.Conv2d):
    """Convolution without bias, then GroupNorm under the name `norm`, as detectron2 has it."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, outputs)
        caffe2_xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self.norm(super().forward(x))


class EncoderLayer(nn.Module):
    """x = LN(x + MSDA(x + pos)); x = LN(x + W2 relu(W1 x))."""

    def __init__(self, dim: int, hidden: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, heads, levels, points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = self.norm1(x + self.self_attn(x + pos, x, reference, shapes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class DeformableEncoder(nn.Module):
    """Layers of deformable self-attention over the tokens of several maps.

    Args:
        dim: C. layers: how many. hidden: of the feed-forward part. heads, points: of the attention. levels: of maps.
    """

    def __init__(self, dim: int, layers: int, hidden: int, heads: int, points: int, levels: int = 3) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(levels, dim))
        built = (EncoderLayer(dim, hidden, heads, levels, points) for _ in range(layers))
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(built)})

    def forward(self, maps: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, H_l, W_l) and their positions -> maps of the same shapes."""
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        tokens = torch.cat([x.flatten(2).mT for x in maps], 1)
        places = [p.flatten(2).mT + embed for p, embed in zip(positions, self.level_embed, strict=True)]
        pos = torch.cat(places, 1)
        reference = cell_centres(shapes, tokens.device, torch.promote_types(tokens.dtype, torch.float32))
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            tokens = layer(tokens, pos, reference, shapes)
        parts = tokens.split([height * width for height, width in shapes], 1)
        return [part.mT.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


class LearnedPositions(nn.Module):
    """A learned vector for each row and each column of a map, half of the channels each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(LONGEST_SIDE, dim // 2)
        self.columns = nn.Embedding(LONGEST_SIDE, dim - dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), whatever x holds."""
        batch, _, height, width = x.shape
        rows = _resized(self.rows.weight, height)[:, :, None].expand(-1, -1, width)
        columns = _resized(self.columns.weight, width)[:, None].expand(-1, height, -1)
        return torch.cat([rows, columns]).to(x.dtype).expand(batch, -1, -1, -1)


def _resized(table: Tensor, length: int) -> Tensor:
    """(entries, c) -> (c, length), linear."""
    return F.interpolate(table.mT[None], size=length, mode="linear", align_corners=False)[0]


def sine_positions(x: Tensor) -> Tensor:
    """DETR's sine waves for a map (B, C, H, W): rows in the first half of the channels, columns in the second.

    Places count from 1 and are scaled so that the last is 2 pi; wave i has the length 10000^(2 (i // 2) / (C / 2)).
    """
    batch, dim, height, width = x.shape
    index = torch.arange(dim // 2, device=x.device, dtype=torch.float32)
    lengths = 10000 ** (2 * (index // 2) / (dim // 2))
    waves = []
    for size in (height, width):
        place = torch.arange(1, size + 1, device=x.device, dtype=torch.float32) / (size + 1e-6) * (2 * math.pi)
        phase = place / lengths[:, None]
        waves.append(torch.where(index[:, None] % 2 == 0, phase.sin(), phase.cos()))
    rows, columns = waves[0][:, :, None].expand(-1, -1, width), waves[1][:, None].expand(-1, height, -1)
    return torch.cat([rows, columns]).to(x.dtype).expand(batch, -1, -1, -1)


class PixelDecoder(nn.Module):
    """Projections, key positions, deformable encoder and the step to stride 4. It works in the type of its weights.

    Args:
        in_channels: of the backbone's maps of strides 4, 8, 16 and 32.
        conv_dim: C. mask_dim: channels of the mask features.
        key_pos: `conditional` (the paper's), `sine` or `learned`.
        levels: maps to give: 4, or 3 for a decoder that never looks at stride 4.
        layers, dim_feedforward, nheads, points: of the encoder. Released networks have 1024 hidden channels here,
            whatever the decoder has.

    Raises:
        UserError: an unknown kind of position, another number of maps, channels that no 32 groups or heads divide.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        conv_dim: int = 256,
        mask_dim: int = 256,
        *,
        key_pos: str = "conditional",
        levels: int = 4,
        layers: int = 6,
        dim_feedforward: int = 1024,
        nheads: int = 8,
        points: int = 4,
    ) -> None:
        super().__init__()
        if key_pos not in KEY_POSITIONS:
            raise UserError(f"key_pos '{key_pos}' is none of {', '.join(KEY_POSITIONS)}")
        if len(in_channels) != 4 or levels not in (3, 4):
            raise UserError(
                f"{len(in_channels)} backbone maps and {levels} levels; there are 4 maps, and 3 or 4 levels"
            )
        if conv_dim % GROUPS:
            raise UserError(f"conv_dim {conv_dim} is not a multiple of {GROUPS}, the groups of its norms")
        self.key_pos, self.levels = key_pos, levels
        # The finest map is projected only to make its positions.
        projected = levels if key_pos == "conditional" else 3
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, conv_dim, 1), nn.GroupNorm(GROUPS, conv_dim))
            for channels in list(in_channels)[::-1][:projected]
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)  # type: ignore[index]
            nn.init.zeros_(projection[0].bias)  # type: ignore[index]
        if key_pos == "conditional":
            self.pos_linear = nn.ModuleList(
                nn.Conv2d(conv_dim, conv_dim, 3, padding=1, groups=conv_dim) for _ in range(levels)
            )
        elif key_pos == "learned":
            self.pos_learned = nn.ModuleList(LearnedPositions(conv_dim) for _ in range(levels))
        self.transformer = DeformableEncoder(conv_dim, layers, dim_feedforward, nheads, points)
        self.mask_features = nn.Conv2d(conv_dim, mask_dim, 1)
        caffe2_xavier(self.mask_features)
        self.adapter_1 = ConvNorm(in_channels[0], conv_dim, 1)
        self.layer_1 = ConvNorm(conv_dim, conv_dim, 3)

    def forward(self, features: Sequence[Tensor]) -> PixelFeatures:
        """Backbone maps (B, c, H_l, W_l) of strides 4, 8, 16 and 32 -> `PixelFeatures`.

        Autocast is off in here, as in the authors' code: float32 weights mean float32.
        """
        dtype = self.mask_features.weight.dtype
        with torch.autocast(features[0].device.type, enabled=False):
            fine, *_ = features = [x.to(dtype) for x in features]
            projected = [layer(x) for layer, x in zip(self.input_proj, reversed(features), strict=False)]
            coarse = projected[:3]
            positions = [self._position(level, x) for level, x in enumerate(coarse)]
            encoded = self.transformer(coarse, positions)
            up = F.interpolate(encoded[2], size=fine.shape[-2:], mode="bilinear", align_corners=False)
            finest = F.relu(self.layer_1(self.adapter_1(fine) + up), inplace=True)
            if self.levels == 4:
                encoded.append(finest)
                positions.append(self._position(3, projected[3] if len(projected) == 4 else finest))
            return PixelFeatures(self.mask_features(finest), encoded, positions)

    def _position(self, level: int, x: Tensor) -> Tensor:
        """Key positions of a level from its projected map."""
        if self.key_pos == "conditional":
            return self.pos_linear[level](x)
        return self.pos_learned[level](x) if self.key_pos == "learned" else sine_positions(x)


def caffe2_xavier(layer: nn.Conv2d) -> None:
    """Kaiming's uniform distribution for a linear layer, bias 0: what Caffe2 calls Xavier."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
