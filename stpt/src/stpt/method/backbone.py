"""The pyramid of spatio-temporal attention (STPT, section 3): patch embeddings, positional convolutions, blocks.

The paper's text fixes the idea: local attention in early stages, global in late ones. Depths, windows, reductions and
where the positional convolution stands are not public; they are arguments, and `stpt.models.networks` says which were
taken.

Shapes: B batch, T frames, H height, W width, C channels. Maps are (B, C, T, H, W) between stages, in memory
channels-last, and (B, T, H, W, C) inside of them: depth-wise 3D convolutions on such views are 5 to 9 times as fast as
on contiguous maps (measured on a CPU), and no token is ever copied between the two.
"""

from collections.abc import Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paperkit.errors import UserError
from stpt.method.attention import FactorisedAttention, GlobalAttention, LocalAttention, triple
from stpt.method.linear_layers import FeedForward, Linear

Size = Sequence[int]
"""Frames, height, width."""
KINDS = {
    "L": "local attention in windows (LSTA)",
    "G": "global attention (GSTA)",
    "C": "3D convolution",
    "F": "attention factorised into space and time",
}
CPE = ("block", "stage", "none")
POS_EMBED = ("none", "abs")
MLP_RATIO = 4


class PositionalConvolution(nn.Conv3d):
    """CPE: x + depth-wise 3x3x3 convolution of x (Chu et al., 2021). It begins as zero, so that a block starts without.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same."""
        return x + super().forward(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class LocalConvolution(nn.Module):
    """A local block's mixing of tokens without attention (UniFormer): pointwise, 5x5x5 depth-wise, pointwise.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = Linear(dim, dim)
        self.depthwise = nn.Conv3d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same."""
        mixed = self.depthwise(self.conv1(x).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        return self.conv2(mixed)


class PatchEmbed(nn.Module):
    """Overlapping patches: a strided convolution and a LayerNorm over channels.

    Args:
        in_channels, dim: channels before and after. kernel, stride: of the convolution; it is padded by kernel // 2.
    """

    def __init__(self, in_channels: int, dim: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        size = triple("kernel", kernel)
        padding = (size[0] // 2, size[1] // 2, size[2] // 2)
        self.proj = nn.Conv3d(in_channels, dim, size, triple("stride", stride), padding)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T, H, W) -> (B, T', H', W', C)."""
        return self.norm(self.proj(x.contiguous(memory_format=torch.channels_last_3d)).permute(0, 2, 3, 4, 1))

    def map_size(self, size: Size) -> tuple[int, ...]:
        """T, H, W -> T', H', W'."""
        conv = self.proj
        sides = zip(size, conv.kernel_size, conv.stride, strict=True)
        return tuple((side + 2 * (kernel // 2) - kernel) // stride + 1 for side, kernel, stride in sides)


class Block(nn.Module):
    """CPE, then attention (or what stands for it), then the feed-forward part, each added to its input.

    Args:
        dim: C. attn: what mixes tokens. cpe: whether the block has its own positional convolution.
        drop_path: probability that a branch is left out, per clip.
    """

    def __init__(self, dim: int, attn: nn.Module, cpe: bool, drop_path: float) -> None:
        super().__init__()
        self.cpe = PositionalConvolution(dim) if cpe else nn.Identity()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, MLP_RATIO * dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same."""
        x = self.cpe(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """A patch embedding and its blocks.

    Args:
        patch_embed, blocks: the parts. cpe: one positional convolution after the first block.
        checkpoint: compute the blocks' activations again in the backward pass instead of keeping them.
    """

    pos_space: nn.Parameter | None
    pos_time: nn.Parameter | None

    def __init__(self, patch_embed: PatchEmbed, blocks: Sequence[Block], cpe: bool, checkpoint: bool) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.cpe = PositionalConvolution(patch_embed.proj.out_channels) if cpe else nn.Identity()
        self.checkpoint = checkpoint
        self.pos_space = self.pos_time = None

    def add_positions(self, size: Size) -> None:
        """Learned embeddings of place and of time, added to the embedded patches of a map of this size (MViT)."""
        (T, H, W), dim = size, self.patch_embed.proj.out_channels
        self.pos_space = nn.Parameter(torch.zeros(1, 1, H, W, dim))
        self.pos_time = nn.Parameter(torch.zeros(1, T, 1, 1, dim))
        nn.init.trunc_normal_(self.pos_space, std=0.02)
        nn.init.trunc_normal_(self.pos_time, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C, T', H', W').

        Raises:
            UserError: a clip of another size than that of the learned positions.
        """
        x = self.patch_embed(x)
        if self.pos_space is not None and self.pos_time is not None:
            if x.shape[1:4] != (known := (self.pos_time.shape[1], *self.pos_space.shape[2:4])):
                raise UserError(f"a map of {tuple(x.shape[1:4])} for learned positions of {tuple(known)}")
            x = x + (self.pos_space + self.pos_time)
        for place, block in enumerate(self.blocks):
            if self.checkpoint and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if place == 0:
                x = self.cpe(x)
        return x.permute(0, 4, 1, 2, 3)


class Backbone(nn.Module):
    """A clip to maps of several resolutions.

    Args:
        dims, depths, heads: channels, blocks and heads of each stage.
        kernels, strides: of the patch embeddings. windows: of local attention. reductions: of global attention's keys
            and values. Triples of frames, height and width, one a stage; those that a stage's kind does not need are
            not looked at.
        kinds: one letter of `KINDS` a stage.
        cpe: where positional convolutions stand: in every block (UniFormer), once a stage after its first block
            (CPVT, Twins), or nowhere.
        pos_embed: `abs` adds learned positions after the first patch embedding; clips must then be of `size`.
        reduction: how keys and values are reduced, see `GlobalAttention`.
        drop_path: of the last block; it grows linearly from 0.
        checkpoint: activation checkpointing by block.
        out_stages: stages whose maps are returned, from 0. in_channels: of a clip. size: T, H, W for `abs`.

    Raises:
        ValueError: numbers of stages that differ, an unknown kind or option, or sizes that a layer refuses.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        kernels: Sequence[Size],
        strides: Sequence[Size],
        windows: Sequence[Size],
        reductions: Sequence[Size],
        kinds: str = "LLGG",
        cpe: str = "block",
        pos_embed: str = "none",
        reduction: str = "depthwise",
        drop_path: float = 0.1,
        checkpoint: bool = False,
        out_stages: Sequence[int] = (2, 3),
        in_channels: int = 3,
        size: Size | None = None,
    ) -> None:
        super().__init__()
        per_stage = dict(depths=depths, heads=heads, kernels=kernels, strides=strides, windows=windows,
                         reductions=reductions, kinds=kinds)  # fmt: skip
        for name, values in per_stage.items():
            if len(values) != len(dims):
                raise ValueError(f"{len(values)} {name} for {len(dims)} stages")
        if unknown := set(kinds) - KINDS.keys():
            raise ValueError(f"stages of kind '{''.join(sorted(unknown))}'; the kinds are {', '.join(KINDS)}")
        if cpe not in CPE or pos_embed not in POS_EMBED:
            raise ValueError(f"cpe '{cpe}' of {', '.join(CPE)}; pos_embed '{pos_embed}' of {', '.join(POS_EMBED)}")
        if not out_stages or not set(out_stages) <= set(range(len(dims))):
            raise ValueError(f"out_stages {out_stages!r} of a backbone with stages 0 to {len(dims) - 1}")
        if not all(isinstance(count, int) and count >= 1 for count in (in_channels, *dims, *depths)):
            raise ValueError(f"in_channels {in_channels!r}, dims {dims!r}, depths {depths!r} must be whole, from 1 on")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path {drop_path} must be a share from 0 on, below 1")
        self.out_stages = tuple(out_stages)
        self.out_channels = tuple(dims[stage] for stage in self.out_stages)
        paths = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        before = [in_channels, *dims]
        self.stages = nn.ModuleList()
        for i, (dim, depth, kind) in enumerate(zip(dims, depths, kinds, strict=True)):
            mixers = [_mixer(kind, dim, heads[i], windows[i], reductions[i], reduction) for _ in range(depth)]
            blocks = [Block(dim, mixer, cpe == "block", next(paths)) for mixer in mixers]
            embed = PatchEmbed(before[i], dim, kernels[i], strides[i])
            self.stages.append(Stage(embed, blocks, cpe == "stage", checkpoint))
        self.apply(_initialise)
        if pos_embed == "abs":
            if size is None:
                raise ValueError("pos_embed 'abs' needs the clips' size: frames, height, width")
            first = self.stages[0]
            assert isinstance(first, Stage)
            first.add_positions(first.patch_embed.map_size(size))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Clips (B, 3, T, H, W) in [-1, 1] -> maps (B, C, T', H', W') of `out_stages`."""
        maps = []
        for stage in self.stages[: max(self.out_stages) + 1]:
            x = stage(x)
            maps.append(x)
        return [maps[stage] for stage in self.out_stages]

    def map_sizes(self, frames: int, height: int, width: int) -> list[tuple[int, ...]]:
        """T', H', W' of the maps that clips of this size give, one for each of `out_stages`."""
        sizes: list[tuple[int, ...]] = [(frames, height, width)]
        for stage in self.stages:
            assert isinstance(stage, Stage)
            sizes.append(stage.patch_embed.map_size(sizes[-1]))
        return [sizes[stage + 1] for stage in self.out_stages]


def _mixer(kind: str, dim: int, heads: int, window: Size, ratio: Size, reduction: str) -> nn.Module:
    """What mixes the tokens of a stage's blocks."""
    if kind == "L":
        return LocalAttention(dim, heads, window)
    if kind == "G":
        return GlobalAttention(dim, heads, ratio, reduction)
    return LocalConvolution(dim) if kind == "C" else FactorisedAttention(dim, heads)


def _initialise(module: nn.Module) -> None:
    """Weights normal with deviation 0.02 and biases 0: chosen here, as the paper's start is not public."""
    if isinstance(module, nn.Linear | nn.Conv3d) and not isinstance(module, PositionalConvolution):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
