"""Which sub-networks an SN-Net holds: windows, nearest stitching, and the numbering of configurations (paper, section
3).

A cut (p, q) leaves the front anchor after its block p and enters the end anchor at its block q, both inclusive: the
front runs blocks 0..p, the end runs blocks q..L-1. Everything here is integers; no module is built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import Literal

LayerAssignment = Literal["released", "aligned"]
Cut = tuple[int, int]


@dataclass(frozen=True)
class Configuration:
    """One sub-network: an anchor alone (no cut), one stitch (one cut), or a chain over three anchors (two cuts).

    Attributes:
        anchors: the anchors that it runs, in order (indices, fast to slow).
        cuts: per neighbour in `anchors`, (exit block p of the front, entry block q of the end), both inclusive.
        layers: per cut, the index of its stitching layer among those of that anchor pair (and stage).
        stage: the stage that the cut lies in, for hierarchical families; None for an anchor alone and for plain ViTs.
    """

    anchors: tuple[int, ...]
    cuts: tuple[Cut, ...] = ()
    layers: tuple[int, ...] = ()
    stage: int | None = None

    def describe(self, names: Sequence[str]) -> str:
        """`deit_tiny 0-4 > deit_small 5-`: the anchors by name, with the blocks that each runs."""
        if not self.cuts:
            return names[self.anchors[0]]
        where = "" if self.stage is None else f"stage {self.stage}: "
        parts, first = [], 0
        for anchor, (leave, enter) in zip(self.anchors[:-1], self.cuts, strict=True):
            parts.append(f"{names[anchor]} {first}-{leave}")
            first = enter
        return where + " > ".join([*parts, f"{names[self.anchors[-1]]} {first}-"])


@dataclass(frozen=True)
class Pairs:
    """The cuts between two neighbouring anchors (in one stage), and the layer that each uses."""

    cuts: tuple[Cut, ...]
    layer_of: tuple[int, ...]
    num_layers: int


def paired(depth: int, window: int = 2, stride: int = 1) -> Pairs:
    """Paired stitching for anchors of equal depth: all (p, q) inside a sliding window (plain ViTs).

    A pair that two windows share belongs to the first; a window that adds no pair makes no layer.
    """
    layer_of: dict[Cut, int] = {}
    num_layers = 0
    for start in range(0, depth, stride):
        inside = range(start, min(start + window, depth))
        new = [cut for cut in product(inside, inside) if cut not in layer_of]
        layer_of.update(dict.fromkeys(new, num_layers))
        num_layers += bool(new)
    return Pairs(tuple(layer_of), tuple(layer_of.values()), num_layers)


def paired_forward(depth: int, window: int = 2, stride: int = 1) -> Pairs:
    """Equal depth inside one stage of a hierarchical family: of each window only the cuts with p < q."""
    cuts = tuple(cut for cut in paired(depth, window, stride).cuts if cut[0] < cut[1])
    return Pairs(cuts, tuple(range(len(cuts))), len(cuts))


def unpaired(front_depth: int, end_depth: int, assignment: LayerAssignment = "released") -> Pairs:
    """Unpaired stitching for unequal depths: block e of the end is met by block floor(e * front / end) of the front.

    Args:
        assignment: which layer a pair uses. "aligned" is the layer of its front block. "released" is what the authors'
            code does and their weights need: the t-th pair takes the t-th entry of the stretched list, although the
            pair (0, 0) has been dropped from the pairs, so that the assignment is shifted by one.
    """
    stretched = [e * front_depth // end_depth for e in range(end_depth)]
    cuts = tuple((f, e) for f in range(front_depth) for e in range(end_depth) if stretched[e] == f and f < e)
    released = tuple(stretched[: len(cuts)])
    return Pairs(cuts, released if assignment == "released" else tuple(f for f, _ in cuts), front_depth)


def anchor_subsets(num_anchors: int, nearest: bool) -> list[tuple[int, ...]]:
    """The anchors of each group of configurations, in the released order.

    Nearest stitching keeps single anchors and neighbours (i, i+1); otherwise every pair and every chain of three stays,
    and no chain is longer: the released code knows three anchors at most.
    """
    sizes = range(1, 3 if nearest else 4)
    subsets = [subset for size in sizes for subset in combinations(range(num_anchors), size)]
    if nearest:
        subsets = [s for s in subsets if len(s) == 1 or s[1] == s[0] + 1]
    return subsets


def plain_configurations(num_anchors: int, pairs: dict[tuple[int, int], Pairs], nearest: bool) -> list[Configuration]:
    """Every configuration of stitched plain ViTs (one stage), in the released order of ids.

    Args:
        pairs: the cuts of each anchor pair (front, end) that is stitched.
    """
    configurations = []
    for subset in anchor_subsets(num_anchors, nearest):
        if len(subset) == 1:
            configurations.append(Configuration(subset))
            continue
        neighbours = [pairs[pair] for pair in pairwise(subset)]
        options = [list(zip(found.cuts, found.layer_of, strict=True)) for found in neighbours]
        for choice in product(*options):
            cuts = tuple(cut for cut, _ in choice)
            # A chain's second exit may not lie before its first entry: the middle anchor runs blocks q1..p2.
            if all(later[0] >= earlier[1] for earlier, later in pairwise(cuts)):
                configurations.append(Configuration(subset, cuts, tuple(layer for _, layer in choice)))
    return configurations


def staged_configurations(
    depths: Sequence[Sequence[int]], stages: Sequence[int], assignment: LayerAssignment = "released"
) -> tuple[list[Configuration], dict[tuple[int, int, int], Pairs]]:
    """Every configuration of a hierarchical family: anchors first, then one cut inside one stage, stage by stage.

    Args:
        depths: per anchor, its number of blocks in each stage.
        stages: the stages that are stitched.

    Returns:
        The configurations in the released order, and the pairs by (stage, front, end).
    """
    configurations = [Configuration((anchor,)) for anchor in range(len(depths))]
    pairs = {}
    for stage in stages:
        for front in range(len(depths) - 1):
            end = front + 1
            front_depth, end_depth = depths[front][stage], depths[end][stage]
            equal = front_depth == end_depth
            found = paired_forward(front_depth) if equal else unpaired(front_depth, end_depth, assignment)
            pairs[stage, front, end] = found
            configurations += [
                Configuration((front, end), (cut,), (layer,), stage)
                for cut, layer in zip(found.cuts, found.layer_of, strict=True)
            ]
    return configurations, pairs
