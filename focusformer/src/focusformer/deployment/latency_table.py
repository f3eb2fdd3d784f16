"""A latency table of a space: what one block, and what all but the blocks, takes on this machine.

The extracted networks are timed, as they would be deployed. A network of all layers and one of a single layer, every
layer alike, tell the block by their difference; the rest of the shallow one is the stem of its width. A sum of medians
is a model of the latency, and `focusformer latency` prints how far it is from whole networks that it has not seen.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from focusformer.method.architecture import Architecture, SearchSpace
from focusformer.method.cost import LatencyTable
from focusformer.method.supernet import Supernet
from focusformer.models.extraction import extract_subnet
from paperkit.errors import UserError

SMALLEST = 1e-4
"""ms; what a block whose difference is lost in the noise is taken for."""


def latency_of(supernet: Supernet, architecture: Architecture, image: Tensor, seconds: float) -> float:
    """Median milliseconds of a batch through the extracted network, with the present number of threads.

    Args:
        image: (B, channels, H, W) on the device of the supernet.
        seconds: how long it is run, after one run to warm up.
    """
    network = extract_subnet(supernet, architecture).to(image.device).eval()
    with torch.inference_mode():
        network(image)
        timer = Timer(
            "network(image)", globals={"network": network, "image": image}, num_threads=torch.get_num_threads()
        )
        return 1000 * timer.blocked_autorange(min_run_time=seconds).median


def measure(
    supernet: Supernet,
    space: SearchSpace,
    image: Tensor,
    seconds: float,
    told: str,
    progress: Callable[[Iterable[tuple[int, int, float]]], Iterable[tuple[int, int, float]]] = iter,
) -> LatencyTable:
    """The table of a space.

    Args:
        supernet: with any weights.
        image: as for `latency_of`.
        told: device, threads, precision and batch, kept with the table.
        progress: shows how far the parts are.

    Raises:
        UserError: a supernet of one layer.
    """
    deepest = supernet.sizes.depth
    if deepest < 2:
        raise UserError("a supernet of one layer has no two depths whose difference would be a block")
    parts = list(itertools.product(space.embed, space.heads, space.ratios))
    blocks: dict[tuple[int, int, float], float] = {}
    rests: dict[int, list[float]] = {width: [] for width in space.embed}
    for embed, heads, ratio in progress(parts):
        shallow, deep = (
            latency_of(supernet, Architecture(embed, (heads,) * depth, (ratio,) * depth), image, seconds)
            for depth in (1, deepest)
        )
        block = (deep - shallow) / (deepest - 1)
        blocks[embed, heads, ratio] = max(block, SMALLEST)
        rests[embed].append(max(shallow - block, SMALLEST))
    return LatencyTable({width: statistics.median(found) for width, found in rests.items()}, blocks, told)
