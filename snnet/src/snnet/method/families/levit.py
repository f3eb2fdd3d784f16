"""LeViT (timm `LevitDistilled` and `Levit`, linear variant): stages of attention on (B, N, C) tokens after a
convolutional stem, attention that shrinks the grid between them, one head or two.
"""

from typing import Any, cast

from timm.models.levit import Levit, LevitDistilled
from torch import Tensor, nn

from snnet.method.families.family import Grid, TokenLayout


class LeViT:
    """timm's `LevitDistilled` and `Levit` on tokens (`use_conv=False`), BatchNorm unfused."""

    name: str = "LeViT"
    layout: TokenLayout = "tokens"
    stitched_stages: tuple[int, ...] | None = (0, 1)

    def takes(self, anchor: nn.Module) -> bool:
        return type(anchor) in (Levit, LevitDistilled) and not cast(Levit, anchor).use_conv

    def depths(self, anchor: nn.Module) -> tuple[int, ...]:
        return tuple(len(stage.blocks) for stage in _levit(anchor).stages)  # type: ignore[arg-type]

    def width(self, anchor: nn.Module, stage: int) -> int:
        return cast(int, _levit(anchor).feature_info[stage]["num_chs"])

    def grid(self, anchor: nn.Module) -> Grid:
        """LeViT knows its grid, not its image: the tables of attention biases have one entry per position."""
        strides = tuple(cast(int, stage["reduction"]) for stage in _levit(anchor).feature_info)
        height, width = _levit(anchor).stages[0].blocks[0].attn.resolution  # type: ignore[index,union-attr]
        return Grid(strides, (height * strides[0], width * strides[0]))

    def embed(self, anchor: nn.Module, x: Tensor) -> Tensor:
        return _levit(anchor).stem(x).flatten(2).transpose(1, 2)

    def enter_stage(self, anchor: nn.Module, stage: int, x: Tensor) -> Tensor:
        downsample = cast(nn.Module, _levit(anchor).stages[stage].downsample)
        return _with_fresh_biases(downsample.attn_downsample, downsample, x)

    def block(self, anchor: nn.Module, stage: int, index: int, x: Tensor) -> Tensor:
        block = cast(nn.Sequential, _levit(anchor).stages[stage].blocks)[index]
        return _with_fresh_biases(block.attn, block, x)

    def head(self, anchor: nn.Module, x: Tensor, final_norm: bool) -> Tensor | tuple[Tensor, Tensor]:
        """Mean over tokens, then both heads in training (labels, teacher) and their mean in evaluation."""
        levit = _levit(anchor)
        if not isinstance(levit, LevitDistilled):
            return levit.forward_head(x)
        pooled = levit.forward_head(x, pre_logits=True)
        by_label, by_teacher = levit.head(pooled), levit.head_dist(pooled)
        return (by_label, by_teacher) if levit.training else (by_label + by_teacher) / 2

    def owned_by(self, anchor: nn.Module, step: str, stage: int, index: int, final_norm: bool) -> tuple[str, ...]:
        return {
            "embed": ("stem.",),
            "enter_stage": (f"stages.{stage}.downsample.",),
            "block": (f"stages.{stage}.blocks.{index}.",),
            "head": ("head.", "head_dist."),
        }[step]


def _with_fresh_biases(attention: Any, piece: nn.Module, x: Tensor) -> Tensor:
    """Run `piece` without the cache of gathered attention biases that timm keeps in eval mode.

    Emptied before, because weights may have been loaded or updated in eval mode since; and after, because what it
    keeps can hold a graph (which no deep copy survives) or the symbols of an export.
    """
    attention.attention_bias_cache = {}
    x = piece(x)
    attention.attention_bias_cache = {}
    return x


def _levit(anchor: nn.Module) -> Levit:
    return cast(Levit, anchor)
