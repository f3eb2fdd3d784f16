"""The stitched network: whole anchors, affine stitching layers between them, one integer to switch (paper, section 3).

    y = h^j( b^j_{L_j-1} o ... o b^j_q o S o b^i_p o ... o b^i_0 o e^i (x) )

Shapes: B batch, N tokens, C channels, H height, W width; D_i, D_j widths of the front and of the end anchor.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paperkit.errors import UserError
from snnet.method.enumeration import (
    LayerAssignment,
    Pairs,
    anchor_subsets,
    paired,
    plain_configurations,
    staged_configurations,
    unpaired,
)
from snnet.method.families import family_of
from snnet.method.families.family import Family, TokenLayout
from snnet.method.statistics import StitchStatistics
from snnet.method.steps import Step, route

Logits = Tensor | tuple[Tensor, Tensor]
"""(B, K), or those of a model with two heads (LeViT in training mode)."""


def mean_logits(logits: Logits) -> Tensor:
    """(B, K): the logits, or the mean of a model's two heads."""
    return logits if isinstance(logits, Tensor) else (logits[0] + logits[1]) / 2


class StitchingLayer(nn.Module):
    """The affine map S from activations of width D_i to width D_j: linear on tokens, a 1x1 convolution on feature maps.

    Args:
        in_width: D_i.
        out_width: D_j.
        layout: layout of the front anchor's activations.
        out_layout: layout that the end anchor expects; a map (B, D_j, H, W) becomes (B, H, W, D_j) where it is
            channels-last.
    """

    def __init__(self, in_width: int, out_width: int, layout: TokenLayout, out_layout: TokenLayout) -> None:
        super().__init__()
        convolution = layout == "channels_first"
        self.transform: nn.Conv2d | nn.Linear = (
            nn.Conv2d(in_width, out_width, kernel_size=1) if convolution else nn.Linear(in_width, out_width)
        )
        self.to_channels_last = convolution and out_layout == "channels_last"

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D_i) -> (B, N, D_j), or the same on feature maps."""
        x = self.transform(x)
        return x.permute(0, 2, 3, 1) if self.to_channels_last else x


class StitchedNetwork(nn.Module):
    """Every configuration of a family of anchors in one module.

    Parameter names are those of the released checkpoints: `anchors.{a}.<timm key>` and, for plain ViTs,
    `stitch_layers.{pair}.{layer}.transform.*`; hierarchical families put the stage before the pair.

    Args:
        anchors: timm models of one family, fast to slow; one alone makes a network of one configuration.
        nearest: stitch neighbours only; otherwise every pair and every chain of three (plain ViTs).
        window, stride: the sliding window of paired stitching (plain ViTs).
        stitched_final_norm: whether stitched paths run the final norm of their end anchor (plain ViTs). The paper's
            equation says so; the released code and weights skip it.
        layer_assignment: see `enumeration.unpaired`.
        any_order: take anchors that get smaller too (the paper's ablation slow-to-fast).

    Raises:
        UserError: if the anchors are of families, layouts or an order that do not stitch.
    """

    def __init__(
        self,
        anchors: Sequence[nn.Module],
        *,
        nearest: bool = True,
        window: int = 2,
        stride: int = 1,
        stitched_final_norm: bool = True,
        layer_assignment: LayerAssignment = "released",
        any_order: bool = False,
    ) -> None:
        super().__init__()
        self.anchors = nn.ModuleList(anchors)
        self.families: list[Family] = [family_of(anchor) for anchor in anchors]
        self.stitched_final_norm = stitched_final_norm
        self.depths = [family.depths(anchor) for family, anchor in zip(self.families, anchors, strict=True)]
        check_anchors(anchors, self.families, any_order)
        stages = stitched_stages(self.families)
        check_depths(self.depths, stages or (0,))
        if stages is None:
            self.pairs = _plain_pairs([depths[0] for depths in self.depths], nearest, window, stride, layer_assignment)
            by_pair = {(front, end): found for (_, front, end), found in self.pairs.items()}
            self.configurations = plain_configurations(len(anchors), by_pair, nearest)
        else:
            self.configurations, self.pairs = staged_configurations(self.depths, stages, layer_assignment)
        self.routes = [route(c, self.depths, stitched_final_norm) for c in self.configurations]
        self.stitch_layers = self._build_stitch_layers()
        self.config_id = len(anchors) - 1
        self.checkpointing = False
        self.statistics: StitchStatistics | None = None  # see bn_recalibration

    def _build_stitch_layers(self) -> nn.ModuleList:
        """`stitch_layers[pair][layer]`, or `[stage][pair][layer]` for hierarchical families."""
        plain = stitched_stages(self.families) is None
        stages = sorted({stage for stage, _, _ in self.pairs})
        per_stage = [nn.ModuleList() for _ in stages]
        self._layer_path: dict[tuple[int, int, int], tuple[int, ...]] = {}
        for (stage, front, end), found in self.pairs.items():
            families, models = [self.families[i] for i in (front, end)], [self.anchors[i] for i in (front, end)]
            widths = [family.width(model, stage) for family, model in zip(families, models, strict=True)]
            at = stages.index(stage)
            self._layer_path[stage, front, end] = (len(per_stage[at]),) if plain else (at, len(per_stage[at]))
            per_stage[at].append(
                nn.ModuleList(
                    StitchingLayer(widths[0], widths[1], families[0].layout, families[1].layout)
                    for _ in range(found.num_layers)
                )
            )
        return (per_stage[0] if per_stage else nn.ModuleList()) if plain else nn.ModuleList(per_stage)

    def stitching_layer(self, step: Step) -> StitchingLayer:
        """The module of a `stitch` step."""
        module: nn.Module = self.stitch_layers
        for index in self._path(step):
            module = cast(nn.ModuleList, module)[index]
        return cast(StitchingLayer, module)

    def _path(self, step: Step) -> tuple[int, ...]:
        assert step.end is not None
        return (*self._layer_path[step.stage, step.anchor, step.end], step.index)

    def key_prefixes(self, step: Step) -> tuple[str, ...]:
        """Prefixes of the state-dict keys that a step uses."""
        if step.kind == "stitch":
            return (".".join(["stitch_layers", *map(str, self._path(step)), ""]),)
        owned = self.families[step.anchor].owned_by(
            self.anchors[step.anchor], step.kind, step.stage, step.index, step.final_norm
        )
        return tuple(f"anchors.{step.anchor}.{prefix}" for prefix in owned)

    def names_used(self, route: Iterable[Step], names: Iterable[str]) -> set[str]:
        """Those of `names` (state-dict keys) that the steps of a route use."""
        prefixes = tuple(prefix for step in route for prefix in self.key_prefixes(step))
        return {name for name in names if name.startswith(prefixes)}

    def stitch_steps(self) -> dict[Step, list[tuple[int, int]]]:
        """Every stitching layer as its step, with the cuts (p, q) that use it (the released quirk may leave none)."""
        found: dict[Step, list[tuple[int, int]]] = {}
        for (stage, front, end), pairs in self.pairs.items():
            for layer in range(pairs.num_layers):
                cuts = [cut for cut, used in zip(pairs.cuts, pairs.layer_of, strict=True) if used == layer]
                found[Step("stitch", front, stage, layer, end)] = cuts
        return found

    @property
    def num_configurations(self) -> int:
        return len(self.configurations)

    def check_id(self, config_id: int) -> int:
        """Return `config_id`; raise UserError if there is no such configuration."""
        if not 0 <= config_id < len(self.configurations):
            raise UserError(f"no configuration {config_id}; this network has 0 to {len(self.configurations) - 1}")
        return config_id

    def set_stitch(self, config_id: int) -> "StitchedNetwork":
        """Make `config_id` the configuration that a plain call runs; no weight moves. Returns the network."""
        self.config_id = self.check_id(config_id)
        return self

    def run(self, step: Step, x: Tensor) -> Logits:
        """One step of a route."""
        if step.kind == "stitch":
            return self.stitching_layer(step)(x)
        family, anchor = self.families[step.anchor], self.anchors[step.anchor]
        if step.kind == "block":
            if self.checkpointing and self.training:
                return checkpoint(family.block, anchor, step.stage, step.index, x, use_reentrant=False)
            return family.block(anchor, step.stage, step.index, x)
        if step.kind == "embed":
            return family.embed(anchor, x)
        if step.kind == "enter_stage":
            return family.enter_stage(anchor, step.stage, x)
        return family.head(anchor, x, step.final_norm)

    def forward(self, x: Tensor, config_id: int | None = None) -> Logits:
        """Images (B, 3, H, W) to logits (B, classes) of one configuration, by default the one last set."""
        chosen = self.config_id if config_id is None else self.check_id(config_id)
        with self.own_statistics(chosen):
            for step in self.routes[chosen]:
                x = self.run(step, x)  # type: ignore[assignment]
        return x

    def own_statistics(self, config_id: int) -> AbstractContextManager[None]:
        """Inside, BatchNorm has the configuration's own statistics if it has been given any (evaluation only)."""
        if self.statistics is None or self.training:
            return nullcontext()
        return self.statistics.applied(self, config_id)

    def forward_many(self, x: Tensor, config_ids: Iterable[int]) -> Iterator[tuple[int, Logits]]:
        """Yield (id, logits) for several configurations, running every shared beginning of their routes once.

        The routes form a tree of steps. It is walked depth first, so at most one activation per level is alive. With
        BatchNorm statistics per configuration nothing is shared, and each runs alone.
        """
        if self.statistics is not None and not self.training:
            yield from ((config_id, self(x, config_id)) for config_id in config_ids)
            return
        yield from self._walk(self.route_tree(config_ids), x)

    def route_tree(self, config_ids: Iterable[int]) -> dict[Step, Any]:
        """The routes of several configurations as nested dicts, step by step; a head holds its list of ids."""
        tree: dict[Step, Any] = {}
        for config_id in config_ids:
            *steps, head = self.routes[self.check_id(config_id)]
            node = tree
            for step in steps:
                node = node.setdefault(step, {})
            node.setdefault(head, []).append(config_id)
        return tree

    def _walk(self, tree: Mapping[Step, Any], x: Tensor) -> Iterator[tuple[int, Logits]]:
        for step, below in tree.items():
            y = self.run(step, x)
            if step.kind == "head":
                yield from ((config_id, y) for config_id in below)
            else:
                yield from self._walk(below, cast(Tensor, y))

    def reset_classifier(self, num_classes: int) -> None:
        """Give every anchor a fresh head for `num_classes` classes; blocks and stitching layers are kept."""
        for anchor in self.anchors:
            anchor.reset_classifier(num_classes)  # type: ignore[operator]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute block activations in the backward pass instead of keeping them."""
        self.checkpointing = enable


def check_anchors(anchors: Sequence[nn.Module], families: Sequence[Family], any_order: bool) -> None:
    """Refuse anchors that cannot be stitched, with one line that says why."""
    if not anchors:
        raise UserError("an SN-Net needs at least one anchor")
    for i, (front, end) in enumerate(pairwise(anchors)):
        front_family, end_family = families[i], families[i + 1]
        if not can_follow(front_family, end_family):
            raise UserError(
                f"a {front_family.name} (anchor {i}) does not stitch to a {end_family.name} (anchor {i + 1})"
            )
        grids = front_family.grid(front), end_family.grid(end)
        if not grids[0].fits(grids[1]):
            raise UserError(
                f"anchors {i} and {i + 1} lay out their activations differently: {grids[0]} against {grids[1]}; "
                "stitched anchors need the same image size, strides and prefix tokens"
            )
        sizes = [sum(p.numel() for p in anchor.parameters()) for anchor in (front, end)]
        if sizes[0] > sizes[1] and not any_order:
            raise UserError(
                f"anchors must go from fast to slow: anchor {i} has {sizes[0]:,} parameters, "
                f"anchor {i + 1} {sizes[1]:,}"
            )


def stitched_stages(families: Sequence[Family]) -> tuple[int, ...] | None:
    """The stages that every family of a network stitches (ResNet with Swin: those of ResNet); None for plain ViTs."""
    found = [family.stitched_stages for family in families]
    if any(stages is None for stages in found):
        return None
    return tuple(stage for stage in found[0] or () if all(stage in (stages or ()) for stages in found))


def check_depths(depths: Sequence[Sequence[int]], stages: Sequence[int]) -> None:
    """Refuse anchors that get shallower in a stitched stage: no block of the end would be met from the front."""
    for i, (front, end) in enumerate(pairwise(depths)):
        for stage in stages:
            if front[stage] > end[stage]:
                where = f" in stage {stage}" if len(front) > 1 else ""
                raise UserError(
                    f"anchors must not get shallower: anchor {i} has {front[stage]} blocks{where}, "
                    f"anchor {i + 1} has {end[stage]}"
                )


def can_follow(front: Family, end: Family) -> bool:
    """Whether stitches may lead from one family to another: to itself, or from feature maps to channels-last tokens."""
    return front.name == end.name or (front.layout, end.layout) == ("channels_first", "channels_last")


def _plain_pairs(
    depths: Sequence[int], nearest: bool, window: int, stride: int, assignment: LayerAssignment
) -> dict[tuple[int, int, int], Pairs]:
    """The pairs of every stitched anchor pair of plain ViTs, under stage 0."""
    subsets = [subset for subset in anchor_subsets(len(depths), nearest) if len(subset) == 2]
    return {
        (0, front, end): paired(depths[front], window, stride)
        if depths[front] == depths[end]
        else unpaired(depths[front], depths[end], assignment)
        for front, end in subsets
    }
