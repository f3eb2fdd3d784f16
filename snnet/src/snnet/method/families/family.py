"""What an SN-Net asks of a family of models: to run one anchor piece by piece.

An anchor is an ordinary timm model. A family is stateless: it knows where such a model keeps its blocks, and calls
them. Shapes are the family's own: plain ViTs and LeViT carry (B, N, C) tokens, Swin (B, H, W, C), ResNet (B, C, H, W).
"""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

TokenLayout = Literal["tokens", "channels_last", "channels_first"]


class Grid(NamedTuple):
    """Where the activations of an anchor stand in the image; stitched anchors must agree in it.

    Attributes:
        strides: per stage, pixels per activation.
        image: (H, W) that the anchor was built for; None if it takes any.
        prefix_tokens: class and register tokens before those of the image.
    """

    strides: tuple[int, ...]
    image: tuple[int, int] | None
    prefix_tokens: int = 0

    def fits(self, other: "Grid") -> bool:
        """Whether activations of one anchor can be given to the other."""
        same = (self.strides, self.prefix_tokens) == (other.strides, other.prefix_tokens)
        return same and (self.image is None or other.image is None or self.image == other.image)

    def __str__(self) -> str:
        image = "any image" if self.image is None else "x".join(map(str, self.image))
        prefix = f" + {self.prefix_tokens} prefix tokens" if self.prefix_tokens else ""
        return f"{image} at stride {'/'.join(map(str, self.strides))}{prefix}"


class Family(Protocol):
    """How to take one kind of timm model apart.

    Attributes:
        name: the name in messages and tables.
        layout: where the channels of its activations stand.
        stitched_stages: the stages that are stitched; None for a family of one stage (plain ViTs).
    """

    name: str
    layout: TokenLayout
    stitched_stages: tuple[int, ...] | None

    def takes(self, anchor: nn.Module) -> bool:
        """Whether the anchor is of this family."""
        ...

    def depths(self, anchor: nn.Module) -> tuple[int, ...]:
        """Number of blocks per stage."""
        ...

    def width(self, anchor: nn.Module, stage: int) -> int:
        """Number of channels inside a stage."""
        ...

    def grid(self, anchor: nn.Module) -> Grid:
        """What must agree for two anchors to be stitched."""
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
        """Output of the last block to logits; `final_norm` False skips the norm before the head (plain ViTs)."""
        ...

    def owned_by(self, anchor: nn.Module, step: str, stage: int, index: int, final_norm: bool) -> tuple[str, ...]:
        """Prefixes of the state-dict keys that a step uses; `step` is embed, enter_stage, block or head."""
        ...
