"""Where the queries of a trained network look, and whether they look there again.

Shapes: B pictures, Q queries, N tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from faseg.experiment.network import SceneNetwork
from faseg.experiment.scenes import SIDE
from faseg.figures.consistency import map_overlap
from faseg.method.decoder import LayerTrace

STRIDES = (8, 4, 2, 1)
PAIRS = ("1/8, 1/4", "1/4, 1/2", "1/2, next 1/8", "1/8, next 1/8")
"""Pairs of layers whose maps are compared; the last one is of one size in both groups of layers."""
CONFIDENT = 0.5


@torch.no_grad()
def look(network: SceneNetwork, images: Tensor) -> tuple[list[LayerTrace], Tensor]:
    """What every layer did, and the probability of the likeliest class of each query in the last output, (B, Q)."""
    trace: list[LayerTrace] = []
    logits = network.eval()(images, trace=trace)["pred_logits"]
    return trace, logits.softmax(-1)[..., :-1].amax(-1)


def consistency(network: SceneNetwork, images: Tensor) -> list[float]:
    """Mean cosine of the attention maps of each of `PAIRS`, over confident queries; all on the grid of 1/8."""
    trace, likely = look(network, images)
    coarse = SIDE // STRIDES[0]
    maps = [F.adaptive_avg_pool2d(as_map(seen), coarse).flatten(2) for seen in trace if seen.level < 3]
    pairs = ((0, 1), (1, 2), (2, 3), (0, 3))
    return [map_overlap(maps[first], maps[second], likely > CONFIDENT) for first, second in pairs]


def as_map(seen: LayerTrace) -> Tensor:
    """A layer's attention as maps (B, Q, H, W); that of a high-resolution layer is 0 outside its windows."""
    side = SIDE // STRIDES[seen.level]
    if seen.cells is None:
        return seen.attention.unflatten(2, (side, side))
    grid = SIDE // STRIDES[0]
    window = side // grid
    whole = torch.zeros(*seen.attention.shape[:2], grid**2, window**2)
    image = torch.arange(len(whole))[:, None]
    whole[image, :, seen.cells] = seen.attention.unflatten(2, (-1, window**2)).transpose(1, 2)
    return whole.unflatten(3, (window, window)).unflatten(2, (grid, grid)).transpose(3, 4).flatten(4).flatten(2, 3)
