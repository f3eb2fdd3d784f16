"""Where the queries of a trained network look, and whether they look there again.

Shapes: B pictures, Q queries, N tokens.
"""

import torch
from torch import Tensor

from faseg.experiment.network import SceneNetwork
from faseg.experiment.scenes import SIDE
from faseg.figures.consistency import map_overlap
from faseg.figures.layer_maps import on_coarse_grid
from faseg.method.decoder import LayerTrace

STRIDES = (8, 4, 2, 1)
SIZES = [(SIDE // stride, SIDE // stride) for stride in STRIDES]
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
    maps = on_coarse_grid(trace, SIZES)
    pairs = ((0, 1), (1, 2), (2, 3), (0, 3))
    return [map_overlap(maps[first], maps[second], likely > CONFIDENT) for first, second in pairs]
