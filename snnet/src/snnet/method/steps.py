"""A sub-network as a list of steps: embed, block, ..., stitch, block, ..., head.

Everything that runs, counts, prunes or exports sub-networks works on these lists, whatever the family.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from snnet.method.enumeration import Configuration


@dataclass(frozen=True)
class Step:
    """One piece of a forward pass.

    Attributes:
        kind: `embed`, `enter_stage` (downsampling), `block`, `stitch` or `head`.
        anchor: the anchor that it belongs to; for `stitch` the front anchor.
        stage: the stage (0 for plain ViTs).
        index: block index; for `stitch` the index of the stitching layer.
        end: for `stitch` the end anchor, else None.
        final_norm: for `head`, whether the norm before the head runs.
    """

    kind: Literal["embed", "enter_stage", "block", "stitch", "head"]
    anchor: int
    stage: int = 0
    index: int = 0
    end: int | None = None
    final_norm: bool = True


def route(configuration: Configuration, depths: Sequence[Sequence[int]], stitched_final_norm: bool) -> tuple[Step, ...]:
    """The steps of a configuration.

    Args:
        depths: per anchor, its number of blocks in each stage.
        stitched_final_norm: whether a stitched path runs the end anchor's final norm.
    """
    anchor = configuration.anchors[0]
    steps = [Step("embed", anchor)]
    position = (0, 0)  # the stage and block that come next
    for end, (leave, enter), layer in zip(
        configuration.anchors[1:], configuration.cuts, configuration.layers, strict=True
    ):
        stage = configuration.stage or 0
        steps += _blocks(anchor, depths[anchor], position, (stage, leave))
        steps.append(Step("stitch", anchor, stage, layer, end))
        anchor, position = end, (stage, enter)
    last_stage = len(depths[anchor]) - 1
    steps += _blocks(anchor, depths[anchor], position, (last_stage, depths[anchor][last_stage] - 1))
    steps.append(Step("head", anchor, final_norm=stitched_final_norm or not configuration.cuts))
    return tuple(steps)


def _blocks(anchor: int, depths: Sequence[int], first: tuple[int, int], last: tuple[int, int]) -> list[Step]:
    """Blocks `first` to `last` (stage, block), both inclusive, with the downsampling between stages."""
    steps = []
    for stage in range(first[0], last[0] + 1):
        start = first[1] if stage == first[0] else 0
        stop = last[1] + 1 if stage == last[0] else depths[stage]
        if stage > first[0]:
            steps.append(Step("enter_stage", anchor, stage))
        steps += [Step("block", anchor, stage, index) for index in range(start, stop)]
    return steps
