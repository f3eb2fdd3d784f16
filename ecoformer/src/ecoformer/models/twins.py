"""Twins-SVT (Chu et al., 2021; class ALTGVT of the released code) with four kinds of blocks.

State-dict keys are the released files'.

Shapes: B batch, N = h w tokens of a stage, D its width, H x W image, K classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.method.softmax_attention import WindowMSA
from ecoformer.models.classifier import (
    IN_FOLDER,
    PatchEmbed,
    PyramidClassifier,
    binary_options,
    build_attention,
    check_stages,
)
from ecoformer.models.pvt import Block
from paperkit.errors import UserError
from paperkit.files.hub import SavedInFolder

BLOCKS = ("EcoBlock", "StandardBlock", "GroupBlock", "GroupBlockv2")


class Mlp(nn.Module):
    """fc1, GELU, fc2; takes a grid and needs none. Keys: fc1, fc2."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, size: Any = None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class PositionalConv(nn.Module):
    """PEG: x + a 3 x 3 depth-wise convolution of it. Key: proj.0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, h w, D) -> (B, h w, D)."""
        grid = x.mT.unflatten(2, size)
        return (self.proj(grid) + grid).flatten(2).mT


class Twins(PyramidClassifier, SavedInFolder, **IN_FOLDER):
    """Patch embeddings without overlap, PEG behind the first block of a stage, final norm, mean, classifier.

    Args:
        embed_dims, num_heads, mlp_ratios, depths, windows, sr_ratios: one value a stage.
        block: "EcoBlock" (EcoFormer in every block of stages 1 to 3, formerly local ones too, full attention where
            the ratio is 1), "StandardBlock" (full attention everywhere), "GroupBlock" (the original: even blocks in
            windows, odd ones with reduced keys) or "GroupBlockv2" (even blocks in windows, odd ones full).
        patch_size: of the first embedding.
        others: as in `ecoformer.models.pvt.PVTv2`.
    """

    prefix_of_stage = r"blocks\.(\d+)"

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        depths: Sequence[int] = (2, 2, 10, 4),
        windows: Sequence[int] = (7, 7, 7, 7),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        block: str = "EcoBlock",
        patch_size: int = 4,
        nbits: int = 16,
        supports: int = 25,
        bias_mode: str = "released",
        bias: str | float = "plus_one",
        backend: str = "auto",
        fit: dict[str, Any] | str | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        lists = dict(embed_dims=embed_dims, num_heads=num_heads, depths=depths, windows=windows, sr_ratios=sr_ratios)
        check_stages(mlp_ratios, **lists)
        if block not in BLOCKS:
            raise UserError(f"block '{block}' is none of {', '.join(BLOCKS)}")
        self.embed_dims, self.depths, self.block = tuple(embed_dims), tuple(depths), block
        binary = binary_options(nbits, supports, bias_mode, bias, backend, fit)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        befores = (in_chans, *embed_dims)
        sides = [patch_size] + [2] * (len(depths) - 1)
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(befores[i], dim, sides[i], sides[i]) for i, dim in enumerate(embed_dims)
        )
        self.pos_block = nn.ModuleList(PositionalConv(dim) for dim in embed_dims)
        self.blocks = nn.ModuleList()
        for i, dim in enumerate(embed_dims):
            stage = nn.ModuleList()
            for j in range(depths[i]):
                heads, ratio = num_heads[i], sr_ratios[i]
                attn: nn.Module
                if block.startswith("Group") and j % 2 == 0 and windows[i] > 1:
                    attn = WindowMSA(dim, heads, windows[i], qkv_bias=qkv_bias, proj_drop=drop_rate)
                else:
                    full = block in ("StandardBlock", "GroupBlockv2") or (block == "EcoBlock" and ratio == 1)
                    kind = "msa" if full else "ecoformer" if block == "EcoBlock" else "sra"
                    attn = build_attention(kind, dim, heads, ratio, qkv_bias, drop_rate, binary)
                mlp = Mlp(dim, int(dim * mlp_ratios[i]), drop_rate)
                stage.append(Block(dim, attn, mlp, norm_eps, rates.pop(0)))
            self.blocks.append(stage)
        self.norm = nn.LayerNorm(embed_dims[-1], eps=norm_eps)
        self.finish(in_chans, num_classes, global_pool, patch_size)

    def each_stage(self, image: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Tokens (B, N, D) and grid of each stage."""
        self.check_image(image)
        for embed, blocks, position in zip(self.patch_embeds, self.blocks, self.pos_block, strict=True):
            x, size = embed(image)
            for j, layer in enumerate(blocks):  # type: ignore[arg-type,var-annotated]
                x = self.run_block(layer, x, size)
                x = position(x, size) if j == 0 else x
            yield x, size
            image = x.mT.unflatten(2, size)

    def final_norm(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.norm(x)


def _size(width: int, depths: tuple[int, int, int, int]) -> dict[str, Any]:
    dims = tuple(width * 2**i for i in range(4))
    return dict(embed_dims=dims, num_heads=tuple(dim // 32 for dim in dims), depths=depths)


SIZES: dict[str, dict[str, Any]] = {
    "alt_gvt_small": _size(64, (2, 2, 10, 4)),
    "alt_gvt_base": _size(96, (2, 2, 18, 2)),
    "alt_gvt_large": _size(128, (2, 2, 18, 2)),
}
