"""What an SN-Net asks of a family of models: to run one anchor piece by piece.

An anchor is an ordinary timm model. A family is stateless: it knows where such a model keeps its blocks, and calls them.
Shapes are the family's own: plain ViTs carry (B, N, C) tokens, Swin (B, H, W, C), convolutional nets (B, C, H, W).
"""

from typing import Literal, Protocol

from torch import Tensor, nn

TokenLayout = Literal["tokens", "channels_last", "channels_first"]


class Family(Protocol):
    """How to take one kind of timm model apart.

    Attributes:
        name: the name in messages and tables.
        layout: where the channels of its activations stand.
        stitched_stages: the stages that are stitched; None for a family of one stage (plain ViTs).
        first_key_stage: the stage that index 0 of `stitch_layers.<stage>` in a checkpoint stands for.
    """

    name: str
    layout: TokenLayout
    stitched_stages: tuple[int, ...] | None
    first_key_stage: int

    def depths(self, anchor: nn.Module) -> tuple[int, ...]:
        """Number of blocks per stage."""
        ...

    def width(self, anchor: nn.Module, stage: int) -> int:
        """Number of channels inside a stage."""
        ...

    def grid(self, anchor: nn.Module) -> tuple[int, ...]:
        """What must be equal for two anchors of this family to be stitched (token counts, window, ...)."""
        ...

    def embed(self, anchor: nn.Module, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the input of block 0 of stage 0."""
        ...

    def enter_stage(self, anchor: nn.Module, stage: int, x: Tensor) -> Tensor:
        """Output of the last block of stage - 1 to the input of block 0 of `stage` (downsampling)."""
        ...

    def block(self, anchor: nn.Module, stage: int, index: int, x: Tensor) -> Tensor:
        """One block."""
        ...

    def head(self, anchor: nn.Module, x: Tensor, final_norm: bool) -> Tensor | tuple[Tensor, Tensor]:
        """Output of the last block to logits; `final_norm` False skips the norm before the head where there is one."""
        ...

    def owned_by(self, anchor: nn.Module, step: str, stage: int, index: int, final_norm: bool) -> tuple[str, ...]:
        """Prefixes of the state-dict keys that a step uses; `step` is embed, enter_stage, block or head."""
        ...
