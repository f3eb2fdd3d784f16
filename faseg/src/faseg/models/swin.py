"""Swin Transformer as a backbone for dense prediction (Liu et al., ICCV 2021), in its authors' form and names.

It differs from timm's and torchvision's in one rule: every second block shifts its windows also where one window
covers the whole map, as the released networks were trained. Maps of strides 4, 8, 16 and 32 come out, each behind a
norm of its own. Shapes: B batch, H x W a map, C channels, h heads, w side of a window.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models.swin_transformer import get_relative_position_index, window_partition, window_reverse
from torch import Tensor, nn

SIZES: dict[str, dict[str, object]] = {
    "swin_t": dict(dim=96, depths=[2, 2, 6, 2], heads=[3, 6, 12, 24], window=7),
    "swin_b": dict(dim=128, depths=[2, 2, 18, 2], heads=[4, 8, 16, 32], window=12),
    "swin_l": dict(dim=192, depths=[2, 2, 18, 2], heads=[6, 12, 24, 48], window=12),
}
FORBIDDEN = -100.0
"""Added to the logits of tokens that the shift brought together from different ends of the map."""


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", get_relative_position_index(window, window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, windows, w w, C) -> the same; `mask` (windows, w w, w w) is added to the logits."""
        windows, tokens, dim = x.shape[1:]
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(tokens, tokens, self.heads).permute(2, 0, 1)
        q, k, v = self.qkv(x).view(-1, windows, tokens, 3, self.heads, dim // self.heads).permute(3, 0, 1, 4, 2, 5)
        if mask is None:
            q, k, v = (each.flatten(0, 1) for each in (q, k, v))
        else:  # windows times heads stand as heads, so that one mask serves all pictures without being copied
            q, k, v = (each.flatten(1, 2) for each in (q, k, v))
            bias = (bias + mask[:, None].to(bias.dtype)).flatten(0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))
        return self.proj(y.reshape(-1, windows, self.heads, tokens, dim // self.heads).transpose(2, 3).flatten(3))


class Mlp(nn.Module):
    """C -> 4 C -> C with GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Attention inside windows, shifted or not, and an MLP, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, window: int, heads: int, shifted: bool, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, H, W, C) -> the same; `mask` is that of shifted windows on the padded map, see `shift_mask`."""
        batch, height, width, _ = x.shape
        y = _padded(self.norm1(x), self.window)
        size = y.shape[1:3]
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        windows = window_partition(y, (self.window, self.window)).flatten(1, 2).unflatten(0, (batch, -1))
        windows = self.attn(windows, mask if self.shift else None).flatten(0, 1)
        y = window_reverse(windows.unflatten(1, (self.window, -1)), (self.window, self.window), *size)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + self.drop_path(y[:, :height, :width])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Four neighbours to one token: norm of 4 C channels, then 4 C -> 2 C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = _padded(x, 2)
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Stage(nn.Module):
    """Blocks on one grid, and the merging behind them."""

    def __init__(self, dim: int, blocks: Sequence[nn.Module], window: int, last: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same, before the merging."""
        height, width = (-(-side // self.window) * self.window for side in x.shape[1:3])
        mask = shift_mask(height, width, self.window, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x


class PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels to tokens, and a norm."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % self.patch, 0, -height % self.patch))
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """Swin backbone.

    Args:
        dim: C of the first stage; each later one has twice as many. depths: blocks of each stage. heads: of each stage.
        window: w. mlp_ratio: hidden channels of the MLPs over C. patch: pixels of a token's side.
        drop_path: chance to drop the last block's branches, less for earlier ones.
    """

    def __init__(
        self,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        mlp_ratio: float = 4.0,
        patch: int = 4,
        drop_path: float = 0.3,
    ) -> None:
        super().__init__()
        self.channels = [dim * 2**stage for stage in range(len(depths))]
        self.patch_embed = PatchEmbed(dim, patch)
        total = max(sum(depths) - 1, 1)
        self.layers = nn.ModuleList()
        for stage, (depth, channels) in enumerate(zip(depths, self.channels, strict=True)):
            first = sum(depths[:stage])
            blocks = [
                SwinBlock(channels, window, heads[stage], bool(j % 2), mlp_ratio, drop_path * (first + j) / total)
                for j in range(depth)
            ]
            self.layers.append(Stage(channels, blocks, window, last=stage + 1 == len(depths)))
            self.add_module(f"norm{stage}", nn.LayerNorm(channels))
        self.apply(_init)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps of strides 4, 8, 16 and 32."""
        x, maps = self.patch_embed(image), []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)  # type: ignore[operator]
        return maps


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """(windows, w w, w w): 0 between tokens that are neighbours on the map, `FORBIDDEN` between others.

    After the shift the last rows (columns) of a map are those that were its first; within a window they must not mix.
    """
    regions = []
    for side in (height, width):
        index = torch.arange(side, device=device)
        regions.append((index >= side - window).long() + (index >= side - window // 2).long())
    region = 3 * regions[0][:, None] + regions[1]
    windows = window_partition(region[None, :, :, None], (window, window)).flatten(1)
    return (windows[:, None] != windows[:, :, None]).float() * FORBIDDEN


def _padded(x: Tensor, multiple: int) -> Tensor:
    """Zeros below and to the right of (B, H, W, C), up to a multiple of both sides."""
    height, width = x.shape[1:3]
    below, right = -height % multiple, -width % multiple
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_MMSEG = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^layers\.", "stages."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)
_FROM_MMSEG = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^stages\.", "layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)


def to_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `Swin` under the names and in the channel order of mmseg's SwinTransformer."""
    return {_renamed(key, _MMSEG): _reordered(key, value, to_unfold=True) for key, value in state.items()}


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `Swin` under timm's names; the output norms, which timm has not, stay as they are."""
    moved = {_moved(key, 1): value for key, value in state.items()}
    return {key: value for key, value in moved.items() if not key.endswith("relative_position_index")}


def from_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a classifier or backbone of the authors, of timm or of mmseg under the names of a `Swin`.

    What only a classifier has is left out, and so is what follows from the sizes alone.
    """
    kept = {
        key: value
        for key, value in state.items()
        if not re.match(r"(norm|head)\.", key) and not key.endswith(("attn_mask", "relative_position_index"))
    }
    if any(key.startswith("stages.") for key in kept):
        kept = {_renamed(key, _FROM_MMSEG): _reordered(key, value, to_unfold=False) for key, value in kept.items()}
    elif "layers.0.downsample.norm.weight" not in kept:  # timm merges at the start of the next stage
        kept = {_moved(key, -1): value for key, value in kept.items()}
    return kept


def resize_tables(state: Mapping[str, Tensor], model: Swin) -> dict[str, Tensor]:
    """Bias tables of another window, resized to the model's (bicubic, as the authors do)."""
    own, resized = model.state_dict(), dict(state)
    for key, table in state.items():
        if not key.endswith("relative_position_bias_table") or key not in own or len(table) == len(own[key]):
            continue
        old, new = round(len(table) ** 0.5), round(len(own[key]) ** 0.5)
        grid = table.mT.reshape(1, -1, old, old)
        resized[key] = F.interpolate(grid, size=(new, new), mode="bicubic").flatten(2)[0].mT
    return resized


def _renamed(key: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key


def _moved(key: str, by: int) -> str:
    """The merging's name one stage later (1) or earlier (-1)."""
    return re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + by}.downsample", key)


def _reordered(key: str, value: Tensor, *, to_unfold: bool) -> Tensor:
    """The 4 C channels of a merging in the order of `nn.Unfold` (mmseg: channel, then place by rows), or back."""
    if ".downsample." not in key:
        return value
    by_rows = [0, 2, 1, 3]  # here places go by columns
    if to_unfold:
        return value.unflatten(-1, (4, -1))[..., by_rows, :].transpose(-1, -2).flatten(-2)
    return value.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., by_rows, :].flatten(-2)
