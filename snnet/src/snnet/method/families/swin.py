"""Swin (timm `SwinTransformer`): stages of windowed attention on (B, H, W, C) maps, patch merging between them.

timm merges patches at the start of a stage, the released code at the end of the one before; a stage's input is the
same. A block keeps the shift that its index in its own anchor gives it, whichever anchor feeds it.
"""

from typing import cast

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from snnet.method.families.family import Grid, TokenLayout


class Swin:
    """timm's `SwinTransformer`: any depths, widths, windows and patch size."""

    name: str = "Swin"
    layout: TokenLayout = "channels_last"
    stitched_stages: tuple[int, ...] | None = (0, 1, 2)

    def takes(self, anchor: nn.Module) -> bool:
        return type(anchor) is SwinTransformer

    def depths(self, anchor: nn.Module) -> tuple[int, ...]:
        return tuple(len(stage.blocks) for stage in _swin(anchor).layers)  # type: ignore[arg-type]

    def width(self, anchor: nn.Module, stage: int) -> int:
        return _swin(anchor).feature_info[stage]["num_chs"]

    def grid(self, anchor: nn.Module) -> Grid:
        swin = _swin(anchor)
        image = None if swin.dynamic_img_size else cast(tuple[int, int], swin.patch_embed.img_size)
        return Grid(tuple(stage["reduction"] for stage in swin.feature_info), image)

    def embed(self, anchor: nn.Module, x: Tensor) -> Tensor:
        return _swin(anchor).patch_embed(x)

    def enter_stage(self, anchor: nn.Module, stage: int, x: Tensor) -> Tensor:
        return cast(nn.Module, _swin(anchor).layers[stage].downsample)(x)

    def block(self, anchor: nn.Module, stage: int, index: int, x: Tensor) -> Tensor:
        return cast(nn.Sequential, _swin(anchor).layers[stage].blocks)[index](x)

    def head(self, anchor: nn.Module, x: Tensor, final_norm: bool) -> Tensor:
        """Final norm, mean over positions, classifier; the released code skips this norm nowhere."""
        swin = _swin(anchor)
        return swin.forward_head(swin.norm(x))

    def owned_by(self, anchor: nn.Module, step: str, stage: int, index: int, final_norm: bool) -> tuple[str, ...]:
        return {
            "embed": ("patch_embed.",),
            "enter_stage": (f"layers.{stage}.downsample.",),
            "block": (f"layers.{stage}.blocks.{index}.",),
            "head": ("norm.", "head."),
        }[step]


def _swin(anchor: nn.Module) -> SwinTransformer:
    return cast(SwinTransformer, anchor)
