"""Multi-scale deformable attention in PyTorch alone (Zhu et al., "Deformable DETR", ICLR 2021, section 4.1).

Every query looks at P places of each of L maps. Shapes: B batch, Q queries, N tokens of all maps together, C channels,
h heads, d = C / h. No operator is compiled: on a processor the weighted sum over the 4 L P corners of a query is one
`embedding_bag` over the rows of the values, which are read where they lie; elsewhere, and in exported programs, it is
one `grid_sample` a map.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperkit.errors import UserError

Shapes = Sequence[tuple[int, int]]
"""Height and width of each map."""


class DeformableAttention(nn.Module):
    """Values at learned offsets from a reference point, bilinear, summed by a softmax over the L P places of a head.

    Args:
        dim: C. heads: h. levels: L. points: P.

    Raises:
        UserError: `dim` is not a multiple of `heads`.
    """

    def __init__(self, dim: int = 256, heads: int = 8, levels: int = 3, points: int = 4) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Points lie along h directions, p + 1 pixels away, whatever the query; all weigh the same."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = directions[:, None, None] * steps[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C). value: (B, N, C), the maps one after another. shapes: of the maps.
            reference: (B or 1, Q, L or 1, 2), x and y as a share of the map's width and height; may lie outside.

        Returns:
            (B, Q, C).

        Raises:
            UserError: another number of maps, or maps of another number of tokens.
        """
        if len(shapes) != self.levels:
            raise UserError(f"{len(shapes)} maps for an attention over {self.levels}")
        if (tokens := sum(height * width for height, width in shapes)) != value.shape[1]:
            raise UserError(f"maps {list(shapes)} have {tokens} tokens, the values {value.shape[1]}")
        places = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*places, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, places[1:])
        values = self.value_proj(value).unflatten(-1, (self.heads, -1))
        # Half precision cannot tell neighbouring pixels of a large map apart.
        wide = torch.promote_types(values.dtype, torch.float32)
        with torch.autocast(values.device.type, enabled=False):
            y = deformable_sum(values.to(wide), reference.to(wide), offsets.to(wide), weights.to(wide), shapes)
        return self.output_proj(y.to(values.dtype))


def deformable_sum(values: Tensor, reference: Tensor, offsets: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """sum_lp weights_lp * values_l(reference_l + offsets_lp), bilinear, 0 outside; pixel centres at (i + 0.5) / size.

    Args:
        values: (B, N, h, d). reference: (B or 1, Q, L or 1, 2), shares of a map. offsets: (B, Q, h, L, P, 2), pixels.
        weights: (B, Q, h, L, P). shapes: of the L maps.

    Returns:
        (B, Q, C).
    """
    plain = values.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return (_sum_of_grids if plain else _sum_of_rows)(values, reference, offsets, weights, shapes)


def _sum_of_grids(values: Tensor, reference: Tensor, offsets: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """One `grid_sample` a map."""
    batch, queries, heads, _, points, _ = offsets.shape
    reference = reference.expand(-1, -1, len(shapes), -1)
    total: Tensor | None = None
    for level, ((height, width), map_bnhd) in enumerate(zip(shapes, values.split(_areas(shapes), 1), strict=True)):
        # As a tensor, the sizes would stay in an exported program what they were when it was traced.
        x, y = offsets[:, :, :, level].unbind(-1)
        place = reference[:, :, None, level, None] + torch.stack([x / width, y / height], -1)
        grid = (2 * place - 1).transpose(1, 2).reshape(batch * heads, queries, points, 2)
        map_bdyx = map_bnhd.permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width)
        found = F.grid_sample(map_bdyx, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        share = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        part = (found * share).sum(-1)
        total = part if total is None else total + part
    assert total is not None
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def _sum_of_rows(values: Tensor, reference: Tensor, offsets: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """One weighted sum of rows for each query and head: row (b N + n) h + head of the values is d numbers in a line."""
    batch, tokens, heads, _ = values.shape
    reference = reference.expand(-1, -1, len(shapes), -1)
    image = torch.arange(batch, dtype=torch.int32)[:, None, None, None] * tokens
    head = torch.arange(heads, dtype=torch.int32)[:, None]
    rows, shares = [], []
    start = 0
    for level, (height, width) in enumerate(shapes):
        x, y = (
            # A corner outside the map counts 0, so that nothing changes from one pixel outside on.
            (offsets[:, :, :, level, :, axis] + (reference[:, :, None, None, level, axis] * size - 0.5)).clamp(-1, size)
            for axis, size in enumerate((width, height))
        )
        columns, column_shares = _two_sides(x, width)
        lines, line_shares = _two_sides(y, height)
        for line, line_share in zip(lines, line_shares, strict=True):
            first = line * width + (image + start)
            line_share = line_share * weights[:, :, :, level]
            for column, column_share in zip(columns, column_shares, strict=True):
                rows.append((first + column) * heads + head)
                shares.append(line_share * column_share)
        start += height * width
    found = F.embedding_bag(
        torch.cat(rows, -1).flatten(0, 2),
        values.flatten(0, 2),
        per_sample_weights=torch.cat(shares, -1).flatten(0, 2),
        mode="sum",
    )
    return found.view(batch, -1, heads * values.shape[-1])


def _two_sides(place: Tensor, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """The two pixels that a place on one axis lies between, within the map, and the share of each; 0 outside."""
    lower = place.detach().floor()
    upper_share = place - lower
    lower_index = lower.to(torch.int32)
    indices = [lower_index, lower_index + 1]
    shares = [1 - upper_share, upper_share]
    # A comparison, and no clamped weight: NaN stays NaN, and its index is a valid one all the same.
    inside = [(index >= 0) & (index < size) for index in indices]
    return [index.clamp(0, size - 1) for index in indices], [s * i for s, i in zip(shares, inside, strict=True)]


def _areas(shapes: Shapes) -> list[int]:
    return [height * width for height, width in shapes]


def cell_centres(shapes: Shapes, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(1, N, 1, 2): x and y of the centre of every cell of the maps, as shares of width and height."""
    found = []
    for height, width in shapes:
        y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        found.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1))
    return torch.cat(found)[None, :, None]
