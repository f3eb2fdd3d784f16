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


def focus(weights: Tensor, positions: Tensor) -> Tensor:
    """A P, the position each query looks at: (B, Q, N), (B, N, C) -> (B, Q, C). Sums are of at least float32."""
    wide = torch.promote_types(weights.dtype, torch.float32)
    with torch.autocast(weights.device.type, enabled=False):
        return weights.to(wide) @ positions.to(wide)


def pooled_cells(mask_logits: Tensor, pool: InitialPool = "background") -> Tensor:
    """Where a query's first mask has a probability below 0.5 ("background"), or not below: any shape, to bool."""
    return mask_logits < 0 if pool == "background" else mask_logits >= 0


def initial_focus(mask_logits: Tensor, positions: Tensor, pool: InitialPool = "background") -> Tensor:
    """The mean position over each query's first predicted mask: (B, Q, N), (B, N, C) -> (B, Q, C).

    Args:
        pool: "background" is what the released weights were trained with; "foreground" is the mask itself, as the
            authors describe it.

    A query without any such position gets zeros. No gradient goes to the masks.
    """
    weights = pooled_cells(mask_logits, pool).to(positions.dtype)
    total = weights.sum(-1, keepdim=True, dtype=torch.promote_types(weights.dtype, torch.float32))
    return focus(weights, positions) / (total + 1e-6)
