"""The window of each stage that costs least at an image size, by the paper's formulas (figure 5): the `auto` mode.

Window 1 is never chosen and never changed: plain attention has weights of other shapes. The weights stay as they are;
the outputs change, and `output_change` says by how much.
"""

import torch
from torch import Tensor

from litv2.method.hilo import HiLo, cheapest_window
from litv2.models.pyramid import Pyramid
from paperkit.errors import UserError


def set_window(model: Pyramid, window: int | str, height: int, width: int) -> dict[int, int]:
    """Set the window of every HiLo stage with s >= 2; returns stage -> window.

    Args:
        window: a number, or "auto" for the cheapest at an image of `height` x `width` px.

    Raises:
        UserError: a window below 2 or larger than the grid.
    """
    chosen: dict[int, int] = {}
    patch = model.patch_embed.patch_size
    for i, stage in enumerate(model.each_stage()):
        rows, columns = (-(-side // patch) // 2**i for side in (height, width))
        for block in stage.blocks:
            layer = getattr(block, "attn", None)
            if not isinstance(layer, HiLo) or layer.window_size == 1:
                continue
            s = cheapest_window(layer, rows, columns) if window == "auto" else int(window)
            if s < 2:
                raise UserError(f"window {s}: 1 is plain attention, whose weights have other shapes; take 2 or more")
            if s > max(rows, columns):
                raise UserError(f"window {s} is larger than the grid of {rows} x {columns} tokens of stage {i + 1}")
            layer.window_size = chosen[i] = s
    return chosen


@torch.no_grad()
def output_change(before: Tensor, after: Tensor) -> tuple[float, float]:
    """(Largest change of a logit relative to the largest logit, share of images whose top class changed)."""
    relative = ((after - before).abs().max() / before.abs().max()).item()
    return relative, (after.argmax(-1) != before.argmax(-1)).double().mean().item()
