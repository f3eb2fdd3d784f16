"""Window and shifted-window attention (Swin): 4 N D^2 + 2 s^2 N D multiply-adds.

Shapes: B batch, H x W tokens, D channels, n heads, s window, K = s * s keys, G windows of all images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litv2.method.mechanisms.global_attention import merge_heads, relative_position_index, split_projections
from litv2.method.token_grid import on_grid, pad_to_multiple
from paperkit.errors import UserError


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, Hp, Wp, C) -> (G, K, C), row-major in the window."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """(G, K, C) -> (B, Hp, Wp, C), the inverse of `to_windows`."""
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


class WindowAttention(nn.Module):
    """Attention inside s x s windows, of the map or of the map rolled by `shift_size`.

    The map is padded on the right and at the bottom, without a mask against the padding; after a roll, tokens of
    different regions of the map do not see each other (logit -100).

    Args:
        window_size: s; the benchmark uses 7.
        shift_size: roll in tokens; the benchmark uses 3 for the shifted form.
        use_rel_pos: learned bias per relative position; the benchmark has none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        use_rel_pos: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= shift_size < window_size:
            raise UserError(f"shift_size {shift_size} is outside [0, {window_size})")
        self.num_heads, self.window_size, self.shift_size = num_heads, window_size, shift_size
        self.relative_position_bias_table: nn.Parameter | None = None
        if use_rel_pos:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
            self.relative_position_index: Tensor
            self.register_buffer("relative_position_index", relative_position_index(window_size, window_size))
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) with H and W, or (B, H, W, D) -> the same shape."""
        return on_grid(self._grid, x, H, W)

    def _grid(self, x: Tensor) -> Tensor:
        batch, height, width = x.shape[:3]
        x = pad_to_multiple(x, self.window_size)
        padded_height, padded_width = x.shape[1:3]
        shift = self.shift_size
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
        q, k, v = split_projections(self.qkv(to_windows(x, self.window_size)), 3, self.num_heads)
        bias = self._bias(batch, padded_height, padded_width, x)
        out = self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))
        out = from_windows(out, self.window_size, padded_height, padded_width)
        if shift:
            out = out.roll((shift, shift), dims=(1, 2))
        return out[:, :height, :width].contiguous()

    def _bias(self, batch: int, height: int, width: int, x: Tensor) -> Tensor | None:
        """Position bias plus region mask, (1 or G, n or 1, K, K), or None."""
        bias = None
        if self.relative_position_bias_table is not None:
            bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None].to(x.dtype)
        if self.shift_size:
            regions_gk = to_windows(self._regions(height, width, x.device)[None, :, :, None], self.window_size)[..., 0]
            apart = regions_gk[:, None, :, None] != regions_gk[:, None, None, :]
            mask = torch.where(apart, -100.0, 0.0).to(x.dtype).repeat(batch, 1, 1, 1)
            bias = mask if bias is None else bias + mask
        return bias

    def _regions(self, height: int, width: int, device: torch.device) -> Tensor:
        """(Hp, Wp): number of the region (of nine) that each place of the rolled map came from."""
        s, shift = self.window_size, self.shift_size
        edges = [torch.tensor([size - s, size - shift], device=device) for size in (height, width)]
        rows, columns = (
            torch.bucketize(torch.arange(size, device=device), edge, right=True)
            for size, edge in zip((height, width), edges, strict=True)
        )
        return rows[:, None] * 3 + columns
