"""Dynamic focus-aware positional queries: a layer's queries stand where the layer before looked (arXiv 2204.01244).

The positional query of a layer is h(A P + E): A the head-averaged attention of the previous cross-attention, P the
positions of its keys, E the learned positional queries, h a small MLP that all layers share. `attention.attend` gives
A P; the first layer has no attention yet and pools P over the first predicted masks.

Shapes: B batch, Q queries, N keys, C channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

InitialPool = Literal["background", "foreground"]


def position_mlp(channels: int) -> nn.Sequential:
    """The MLP h, `adapt_pos2d` of the released files."""
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))


def initial_focus(mask_logits: Tensor, positions: Tensor, pool: InitialPool = "background") -> Tensor:
    """The mean position over each query's first predicted mask: (B, Q, N), (B, N, C) -> (B, Q, C).

    Args:
        pool: "background", where the mask's probability is below 0.5, is what the released weights were trained with;
            "foreground" is the mask itself, as the authors describe it.

    A query without any such position gets zeros. No gradient goes to the masks.
    """
    chosen = mask_logits < 0 if pool == "background" else mask_logits >= 0
    weights = chosen.to(positions.dtype)
    with torch.autocast(positions.device.type, enabled=False):  # sums of thousands need more than half precision
        return (weights @ positions) / (weights.sum(-1, keepdim=True) + 1e-6)
