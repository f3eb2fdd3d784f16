"""PVTv2 (Wang et al., 2022) with full, reduced, shared-QK, EcoFormer or Performer attention in stages 1 to 3.

Stage 4 has 49 tokens at 224 px and always takes full attention. State-dict keys are the released files'.

Shapes: B batch, N = h w tokens of a stage, D its width, H x W image, K classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.models.classifier import (
    IN_FOLDER,
    PatchEmbed,
    PyramidClassifier,
    binary_options,
    build_attention,
    check_stages,
)
from paperkit.files.hub import SavedInFolder


class DepthwiseConv(nn.Module):
    """3 x 3 depth-wise convolution over the grid of tokens. Key: dwconv."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, h w, D) -> (B, h w, D)."""
        return self.dwconv(x.mT.unflatten(2, size)).flatten(2).mT


class ConvMlp(nn.Module):
    """fc1, depth-wise convolution, GELU, fc2. Keys: fc1, dwconv.dwconv, fc2."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, h w, D) -> (B, h w, D)."""
        return self.drop(self.fc2(self.drop(self.act(self.dwconv(self.fc1(x), size)))))


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is left out with a probability, and scaled up otherwise.

    Of our own: importing timm from here would ask for this module before it is whole (`paperkit.doors.timm_arrival`).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if not self.training:
            return x
        kept = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)). Keys: norm1, attn, norm2, mlp."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, norm_eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, h w, D) -> (B, h w, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x), size))


class PVTv2(PyramidClassifier, SavedInFolder, **IN_FOLDER):
    """Overlapping patch embeddings, pre-norm blocks, mean over tokens, linear classifier.

    Args:
        embed_dims, num_heads, mlp_ratios, depths, sr_ratios: one value a stage.
        attn_type: of stages 1 to 3: "ecoformer", "msa", "msa_share_qk", "sra" or "performer". Stage 4 is always "msa".
        nbits, supports, bias_mode, bias, backend: see `ecoformer.method.attention.BinaryAttention`.
        fit: options of `ecoformer.method.hash_fit.FitOptions` by name, or its method alone ("adam").
        num_classes: K; 0 leaves the classifier out. global_pool: "avg", or "" for all tokens.
        drop_rate, drop_path_rate: dropout, and stochastic depth of the last block.
        norm_eps: of the blocks' and stages' LayerNorms; those of embeddings and SRA keep 1e-5.

    Example:
        >>> model = PVTv2(**architecture("pvt_v2_b0_ecoformer"))
        >>> logits = model(images)      # training: (B, 3, H, W) -> (B, 1000); the first batch fits the hashes
    """

    prefix_of_stage = r"block(\d+)"

    def __init__(
        self,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        depths: Sequence[int] = (2, 2, 2, 2),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        attn_type: str = "ecoformer",
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
        check_stages(mlp_ratios, embed_dims=embed_dims, num_heads=num_heads, depths=depths, sr_ratios=sr_ratios)
        self.embed_dims, self.depths, self.attn_type = tuple(embed_dims), tuple(depths), attn_type
        binary = binary_options(nbits, supports, bias_mode, bias, backend, fit)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        before = in_chans
        for s, dim in enumerate(embed_dims, 1):
            kind = "msa" if s == len(embed_dims) else attn_type
            blocks = []
            for _ in range(depths[s - 1]):
                attn = build_attention(kind, dim, num_heads[s - 1], sr_ratios[s - 1], qkv_bias, drop_rate, binary)
                mlp = ConvMlp(dim, int(dim * mlp_ratios[s - 1]), drop_rate)
                blocks.append(Block(dim, attn, mlp, norm_eps, rates.pop(0)))
            embed = PatchEmbed(before, dim, 7 if s == 1 else 3, 4 if s == 1 else 2)
            setattr(self, f"patch_embed{s}", embed)
            setattr(self, f"block{s}", nn.ModuleList(blocks))
            setattr(self, f"norm{s}", nn.LayerNorm(dim, eps=norm_eps))
            before = dim
        self.finish(in_chans, num_classes, global_pool, 4)

    def each_stage(self, image: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Normalised tokens (B, N, D) and grid of each stage."""
        self.check_image(image)
        for s in range(1, len(self.embed_dims) + 1):
            x, size = getattr(self, f"patch_embed{s}")(image)
            for block in getattr(self, f"block{s}"):
                x = self.run_block(block, x, size)
            x = getattr(self, f"norm{s}")(x)
            yield x, size
            image = x.mT.unflatten(2, size)


_B1 = dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8))
SIZES: dict[str, dict[str, Any]] = {
    "pvt_v2_b0": dict(embed_dims=(32, 64, 160, 256), num_heads=(1, 2, 5, 8), depths=(2, 2, 2, 2)),
    "pvt_v2_b1": dict(**_B1, depths=(2, 2, 2, 2)),
    "pvt_v2_b2": dict(**_B1, depths=(3, 4, 6, 3)),
    "pvt_v2_b3": dict(**_B1, depths=(3, 4, 18, 3)),
    "pvt_v2_b4": dict(**_B1, depths=(3, 8, 27, 3)),
    "pvt_v2_b5": dict(**_B1, depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}
