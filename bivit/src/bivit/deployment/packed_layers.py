"""Attention, MLPs and timm's blocks over packed linears.

They keep their classes' forward passes over such linears (plain PyTorch, any device), and give the whole of it to one
call of the kernels where these serve: float32 on a CPU, no gradients.

Shapes: B batch, N tokens, T blocks of a map, C channels, W windows of a picture.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from timm.models.nest import TransformerLayer
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from bivit.deployment.kernels import Kernels, Struct
from bivit.deployment.packed_blocks import (
    attention_bytes,
    block_struct,
    gain_of,
    run_block,
    served_attention,
    served_mlp,
    served_norm,
    underflows,
)
from bivit.deployment.packed_linear import cached, serving
from bivit.method.attention import BinaryAttention, BlockAttention, WindowAttention
from bivit.method.mlp import BinaryMlp

M = TypeVar("M", bound=nn.Module)


def recast(cls: type[M], module: nn.Module) -> M:
    """The same module, its parameters and parts shared, with the forward pass of a class beneath its own."""
    new = cls.__new__(cls)
    new.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(module.__dict__[name])
    return new


class PackedAttention(BinaryAttention):
    """`BinaryAttention` over packed linears; one call of the kernels where there is no mask."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        native = serving(x) if attn_mask is None and not is_causal and served_attention(self) else None
        if native is None or self.proj.out_features != x.shape[-1]:
            return super().forward(x, attn_mask, is_causal)
        tokens = x.shape[1]
        inside = lambda: attention_bytes(self, 1, tokens, None, None, None)  # noqa: E731
        struct = cached(self, native, lambda: block_struct(native.tier, self, inside(), None), tokens)
        return run_block(native, struct, x, x.shape[0])


class PackedWindowAttention(WindowAttention):
    """Swin's `WindowAttention` over packed linears."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(B W, N, C) -> (B W, N, C); mask (W, N, N)."""
        native = serving(x) if served_attention(self) and not underflows(self, mask) else None
        if native is None or self.proj.out_features != x.shape[-1]:
            return super().forward(x, mask)
        windows, tokens = 1 if mask is None else mask.shape[0], x.shape[1]
        bias = self.position_bias()[0]
        struct = block_struct(native.tier, self, attention_bytes(self, windows, tokens, None, bias, mask), None)
        return run_block(native, struct, x, x.shape[0] // windows)


class PackedBlockAttention(BlockAttention):
    """NesT's `BlockAttention` over packed linears."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, N, C) -> (B, T, N, C)."""
        native = serving(x) if served_attention(self) else None
        if native is None:
            return super().forward(x)
        images, windows, tokens, _ = x.shape
        inside = lambda: attention_bytes(self, windows, tokens, None, None, None)  # noqa: E731
        struct = cached(self, native, lambda: block_struct(native.tier, self, inside(), None), (windows, tokens))
        return run_block(native, struct, x, images)


class PackedMlp(BinaryMlp):
    """`BinaryMlp` over packed linears; of one bit all through, one call of the kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        native = serving(x) if served_mlp(self) else None
        if native is None or self.fc2.out_features != x.shape[-1]:
            return super().forward(x)
        struct = cached(self, native, lambda: block_struct(native.tier, None, None, self))
        return run_block(native, struct, x, 1)


# --- timm's blocks ---------------------------------------------------------------------------------------------------


def served_block(block: nn.Module, channels: int) -> tuple[bool, bool]:
    """Whether the kernels compute attention and MLP of a block, norms and residuals with them."""
    attn = served_attention(block.attn) and served_norm(block.norm1, channels)  # type: ignore[arg-type]
    mlp = served_mlp(block.mlp) and served_norm(block.norm2, channels)  # type: ignore[arg-type]
    return attn and block.attn.proj.out_features == channels, mlp  # type: ignore[union-attr, return-value]


def fused(block: Any, native: Kernels, x: Tensor, key: Any, inside: Callable[[], Struct]) -> Tensor | None:
    """A block on x (B, ..., C) through the kernels as far as they go; the MLP in PyTorch where its inputs are float."""
    attends, mixes = served_block(block, x.shape[-1])
    if not attends:
        return None
    gains = gain_of(getattr(block, "ls1", None)), gain_of(getattr(block, "ls2", None))
    make = lambda: block_struct(  # noqa: E731
        native.tier, block.attn, inside(), block.mlp if mixes else None, (block.norm1, block.norm2), gains, True
    )
    out = run_block(native, cached(block, native, make, key), x, x.shape[0])
    if mixes:
        return out
    rest = block.mlp(block.norm2(out))
    return out + (rest if gains[1] is None else rest * gains[1])


class PackedVitBlock(Block):
    """timm's ViT block over packed layers."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        out = None
        if attn_mask is None and not is_causal and (native := serving(x)) is not None:
            inside = lambda: attention_bytes(self.attn, 1, x.shape[1], None, None, None)  # noqa: E731
            out = fused(self, native, x, x.shape[1], inside)
        return super().forward(x, attn_mask, is_causal) if out is None else out


class PackedNestLayer(TransformerLayer):
    """timm's NesT layer over packed layers."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, N, C) -> (B, T, N, C)."""
        out = None
        if (native := serving(x)) is not None:
            inside = lambda: attention_bytes(self.attn, x.shape[1], x.shape[2], None, None, None)  # noqa: E731
            out = fused(self, native, x, x.shape[1:3], inside)
        return super().forward(x) if out is None else out


class PackedSwinBlock(SwinTransformerBlock):
    """timm's Swin block over packed layers. Windows are not copied together: a table says where their tokens stand.

    Padded tokens are zeros after the norm, so that their q, k and v come from the biases alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, height, width, C) -> the same shape."""
        out = None
        attn: Any = self.attn
        masked = True if any(self.shift_size) else None
        if served_attention(attn) and not underflows(attn, masked) and (native := serving(x)) is not None:
            out = fused(self, native, x, x.shape[1:3], lambda: self._windows(x))
        return super().forward(x) if out is None else out

    def _windows(self, x: Tensor) -> Struct:
        height, width = x.shape[1:3]
        (rows, columns), area = self.window_size, self.window_area
        places = torch.arange(1, height * width + 1).view(1, height, width, 1)
        places = places.roll((-self.shift_size[0], -self.shift_size[1]), (1, 2))
        places = F.pad(places, (0, 0, 0, -width % columns, 0, -height % rows))
        places = (window_partition(places, self.window_size).view(-1, area) - 1).to(torch.int32).contiguous()
        mask = self.get_attn_mask(F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows)))
        attn: Any = self.attn
        return attention_bytes(attn, len(places), area, places, attn.position_bias()[0], mask)
