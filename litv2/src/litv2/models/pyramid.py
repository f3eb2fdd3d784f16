"""The four-stage network under every task: blocks, stages, and the options of the paper's ablation.

LITv2 (section 3.4): patch embedding, then four stages. The first two hold ConvFFN blocks only ("pay less attention"),
the last two HiLo blocks. A deformable merging stands between stages and belongs to the earlier one.

    ConvFFN block     x = x + ConvFFN(norm2(x))
    attention block   x = x + HiLo(norm1(x));  x = x + ConvFFN(norm2(x))

Shapes: B batch, H x W tokens of the stage at hand, D embed_dim, C = D * 2^i channels of stage i. Maps stay
channels-last, (B, H, W, C), from the patch embedding to the end: linear layers take them as they are, and a permuted
view is what torch's convolutions call channels_last.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from litv2.method.conv_ffn import ConvFFN, DepthwiseConv
from litv2.method.deformable_merging import DeformableMerging, DeformConv, Form
from litv2.method.hilo import HiLo
from litv2.method.mechanisms import MSA, RelPosAttention, SpatialReductionAttention, WindowAttention
from litv2.method.token_grid import pad_to_multiple
from paperkit.errors import UserError

Attention = Literal["hilo", "msa", "sra", "window", "twins"]
Position = Literal["conv", "rel", "conv+rel", "none"]
SMALLEST_IMAGE = 32  # pixels: below it the last stage has no token
MOST_BLOCKS = 1000
"""Of all stages; the largest published size has 24."""
MOST_PAIRED = 10_000
"""Tokens of a stage whose pairs have a bias each: a table of LITv1 for images of 1,600 px."""
PlainOption = bool | int | float | str | list[int] | None
"""What an option of the network may be in a config: nothing that has to be built."""


class PatchEmbed(nn.Module):
    """4x4 stride-4 convolution and LayerNorm: (B, 3, H, W) -> (B, H / 4, W / 4, D), zero-padded to multiples of 4."""

    def __init__(self, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """Patches do not overlap, so the convolution is one matrix product of rearranged pixels."""
        p = self.patch_size
        pixels = pad_to_multiple(image.permute(0, 2, 3, 1), p)
        patches = pixels.unflatten(2, (-1, p)).unflatten(1, (-1, p)).permute(0, 1, 3, 5, 2, 4).flatten(3)
        return self.norm(F.linear(patches, self.proj.weight.flatten(1), self.proj.bias))


class Block(nn.Module):
    """Pre-norm block; without `attention` it is a ConvFFN block and has no `norm1`."""

    def __init__(
        self, dim: int, hidden: int, attention: nn.Module | None, conv: bool, drop: float, path: float
    ) -> None:
        super().__init__()
        if attention is not None:
            self.norm1 = nn.LayerNorm(dim)
            self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ConvFFN(dim, hidden, conv, drop)
        self.drop_path = StochasticDepth(path, "row") if path else nn.Identity()
        self.has_attention = attention is not None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.has_attention:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Blocks of one resolution; the merging to the next one is the child `downsample`, called by the pyramid."""

    def __init__(self, blocks: Sequence[Block], downsample: DeformableMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.grad_checkpointing = False

    def each_block(self) -> list[Block]:
        """The blocks by their own type, which `nn.ModuleList` forgets."""
        return [cast(Block, block) for block in self.blocks]

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), before the merging."""
        for block in self.blocks:
            if self.grad_checkpointing and self.training and not torch.compiler.is_exporting():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class Pyramid(nn.Module):
    """Patch embedding and stages.

    Args:
        embed_dim: D.
        depths: blocks of each stage.
        num_heads: heads of each stage, in both groups together.
        mlp_ratio: hidden width of the ConvFFN over C.
        qkv_bias: bias of the attention's query, key and value maps.
        alpha: share of Lo-Fi heads.
        local_ws: HiLo window of each stage; 1 is plain MSA. Stages without attention ignore it (0 by custom).
        has_msa: 1 for each stage with attention.
        drop_rate: dropout in the feed-forward layers.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 over all blocks.
        img_size: side or (height, width) in pixels. Only `pos="rel"` is bound to it; others use it to refuse windows
            larger than the grid.
        attention: mechanism of the stages with attention; all but "hilo" are the paper's comparison (table 5): "sra"
            reduces by 2 in stage 3, "window" has 7 x 7, "twins" alternates the two.
        pos: how tokens learn where they are: "conv" inside the FFN, "rel" bias of LITv1 with a plain MLP (needs
            `attention="msa"`), both, or "none".
        dtm: form of the deformable merging; "conv" drops the offsets.
        mask_padding: keep padded tokens out of HiLo.

    Raises:
        UserError: options that do not fit together.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        alpha: float = 0.9,
        local_ws: Sequence[int] = (0, 0, 2, 1),
        has_msa: Sequence[int] = (0, 0, 1, 1),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_size: int = 4,
        in_chans: int = 3,
        img_size: int | Sequence[int] | None = None,
        attention: Attention = "hilo",
        pos: Position = "conv",
        dtm: Form = "auto",
        mask_padding: bool = False,
    ) -> None:
        super().__init__()
        if not len(depths) == len(num_heads) == len(local_ws) == len(has_msa):
            raise UserError(
                f"depths {list(depths)}, num_heads {list(num_heads)}, local_ws {list(local_ws)} and has_msa "
                f"{list(has_msa)} must name as many stages"
            )
        if sum(depths) > MOST_BLOCKS:
            raise UserError(f"depths {str(list(depths))[:60]} are more than {MOST_BLOCKS} blocks in all")
        if "rel" in pos and attention != "msa":
            raise UserError(f"pos '{pos}' is a bias of MSA's logits; attention '{attention}' has no place for it")
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size) if img_size else None
        if size and min(size) < SMALLEST_IMAGE:
            raise UserError(f"image of {size[0]} x {size[1]} px; the smallest is {SMALLEST_IMAGE} x {SMALLEST_IMAGE}")
        if "rel" in pos and size is None:
            raise UserError(f"pos '{pos}' needs img_size: its table belongs to one grid")
        self.img_size, self.depths, self.in_chans = size, tuple(depths), in_chans
        self.num_stages, self.num_features = len(depths), embed_dim * 2 ** (len(depths) - 1)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        paths = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            dim = embed_dim * 2**i
            grid = size and tuple(-(-side // patch_size) // 2**i for side in size)
            blocks = []
            for j in range(depth):
                mixer = None
                if has_msa[i]:
                    mixer = build_attention(
                        attention, dim, num_heads[i], i, j, grid,
                        window=local_ws[i], alpha=alpha, qkv_bias=qkv_bias, pos=pos, mask=mask_padding,
                    )  # fmt: skip
                path = paths[sum(depths[:i]) + j]
                blocks.append(Block(dim, int(dim * mlp_ratio), mixer, "conv" in pos, drop_rate, path))
            last = i == len(depths) - 1
            self.layers.append(Stage(blocks, None if last else DeformableMerging(dim, dtm)))
        self.apply(init_weights)

    def stages(self, image: Tensor) -> Iterator[Tensor]:
        """(B, 3, H, W) -> the map of each stage in turn, (B, H_i, W_i, C_i), before its merging."""
        self._check_image(image)
        x = self.patch_embed(image)
        for stage in self.each_stage():
            x = stage(x)
            yield x
            if stage.downsample is not None:
                x = stage.downsample(x)

    def each_stage(self) -> list[Stage]:
        """The stages by their own type, which `nn.ModuleList` forgets."""
        return [cast(Stage, stage) for stage in self.layers]

    def _check_image(self, image: Tensor) -> None:
        if torch.compiler.is_exporting() or torch.compiler.is_compiling():
            return
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise UserError(f"images of shape {tuple(image.shape)}; the model takes (B, {self.in_chans}, H, W)")
        if min(image.shape[2:]) < SMALLEST_IMAGE:
            size = f"{image.shape[2]} x {image.shape[3]}"
            raise UserError(f"image of {size} px; the smallest is {SMALLEST_IMAGE} x {SMALLEST_IMAGE}")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for stage in self.each_stage():
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay beyond biases and one-dimensional ones."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}


def build_attention(
    attention: Attention,
    dim: int,
    heads: int,
    stage: int,
    index: int,
    grid: tuple[int, ...] | None,
    *,
    window: int,
    alpha: float,
    qkv_bias: bool,
    pos: Position,
    mask: bool,
) -> nn.Module:
    """The mixing layer of block `index` of a stage; `grid` is the stage's (H, W) in tokens where it is known."""
    if attention == "hilo":
        if grid and window > max(grid):
            raise UserError(
                f"window {window} of stage {stage + 1} is larger than its grid of {grid[0]} x {grid[1]} tokens; "
                f"take at most {max(grid)}"
            )
        return HiLo(dim, heads, window, alpha, qkv_bias, mask_padding=mask)
    if "rel" in pos:
        assert grid is not None
        if math.prod(grid) > MOST_PAIRED:
            raise UserError(
                f"pos '{pos}' has a bias for each pair of tokens, and stage {stage + 1} has {grid[0]} x {grid[1]} of "
                f"them; at most {MOST_PAIRED} in all are taken: make img_size smaller"
            )
        return RelPosAttention(dim, heads, (grid[0], grid[1]), qkv_bias)
    if attention == "sra" or (attention == "twins" and index % 2):
        return SpatialReductionAttention(dim, heads, 2 if stage < 3 else 1, qkv_bias)
    if attention in ("window", "twins"):
        return WindowAttention(dim, heads, 7, qkv_bias=qkv_bias)
    if attention == "msa":
        return MSA(dim, heads, qkv_bias)
    raise UserError(f"attention '{attention}' is unknown; there are hilo, msa, sra, window, twins")


def init_weights(module: nn.Module) -> None:
    """The authors' initialisation; convolutions other than depthwise ones keep PyTorch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DepthwiseConv):
        nn.init.normal_(module.dwconv.weight, std=math.sqrt(2 / 9))
        assert module.dwconv.bias is not None
        nn.init.zeros_(module.dwconv.bias)
    elif isinstance(module, DeformConv):
        module.reset_offsets()


def architecture(name: str) -> dict[str, Any]:
    """Constructor arguments of a published size (table 1 of the supplement), a fresh dict.

    Raises:
        UserError: unknown name.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"no architecture '{name}'; there are {', '.join(ARCHITECTURES)}")
    return dict(ARCHITECTURES[name])


_SIZES: dict[str, dict[str, Any]] = {
    "s": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.2),
    "m": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.3),
    "b": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
}
_LITV1: dict[str, Any] = dict(attention="msa", pos="rel", img_size=224)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{f"litv2_{size}": options for size, options in _SIZES.items()},
    "litv2_b_384": dict(_SIZES["b"], img_size=384),
    **{f"litv1_{size}": dict(options, **_LITV1) for size, options in _SIZES.items()},
}
