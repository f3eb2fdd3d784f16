"""Which choices can still meet a constraint: exact masks from the reachable sums of the layers left over.

A cost is a sum over the layers, of summands that the width, the place and the layer's own choices decide, so what can
follow a prefix of choices is the set of sums of the layers left. The least and the largest of them are not enough to
judge by: between them the sums have gaps, and with a lower and an upper bound 19 to 46 % of the draws in the digits
space ended dead or infeasible that way. With the whole sorted set, and how many architectures lie behind each sum,
every question has an exact answer by bisection: which choices keep the constraint within reach, how many architectures
a window holds, one of them at uniform chance, any quantile of the cost.

This is ours: the paper handles the constraint in another, unpublished way.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from focusformer.method.architecture import Architecture, SearchSpace
from paperkit.errors import UserError

GRID = 2**14
"""Steps of a measured latency's range on which its sums are held; a counter's sums are held as they are."""

SLIP = 1e-9
"""Of such a step: what sums of floats may be off by, taken as cost."""


@dataclass(frozen=True)
class Window:
    """The costs low <= C <= high that a constraint allows, in the unit of the cost."""

    low: float
    high: float

    def holds(self, cost: float) -> bool:
        """Whether a cost is feasible."""
        return self.low <= cost <= self.high


@dataclass(frozen=True)
class _Sums:
    """Sorted distinct sums of some layers, and how many ways lead to one of the first n (n from 0)."""

    values: NDArray[np.int64]
    ways: NDArray[np.float64]

    def between(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float64]:
        """How many ways lead to a sum from low to high, for each pair of them."""
        first, last = np.searchsorted(self.values, low, "left"), np.searchsorted(self.values, high, "right")
        return np.where(last > first, np.maximum(self.ways[last] - self.ways[first], 1.0), 0.0)  # beyond 2^53 too


class Reachable:
    """The reachable costs of a space, for one kind of cost.

    Counts are float64: exact up to 2^53 architectures. A latency is rounded up to 1 / `GRID` of the largest one in
    every summand, and its windows are narrowed by that rounding: each sample is feasible by the unrounded table, and
    an architecture within a rounding of the lower bound may be passed over.

    Args:
        space: the choices.
        cost: of an architecture of any depth, additive over layers; exact, but for measured latencies.
        name: of the cost, for messages.
        least: a budget tau allows the costs from `least` tau to tau; 0 leaves the upper bound alone.

    Raises:
        UserError: `least` outside [0, 1).
    """

    def __init__(
        self, space: SearchSpace, cost: Callable[[Architecture], float], name: str, least: float = 0.9
    ) -> None:
        if not 0 <= least < 1:
            raise UserError(f"the least share of a budget is {least:g}: need at least 0 and below 1")
        self.space, self.cost, self.name, self.least = space, cost, name, least
        self._layers: dict[int, NDArray[np.int64]] = {}
        self._left: dict[tuple[int, int], list[_Sums]] = {}
        exact = {e: _summands(space, cost, e) for e in space.embed}
        halves = all(bool((2 * layers == np.rint(2 * layers)).all()) for layers in exact.values())
        self._step = 0.5 if halves else max(layers.max((1, 2)).sum() for layers in exact.values()) / GRID
        self._rounded, self._slip = (0, 0.0) if halves else (1, SLIP)
        for e, layers in exact.items():  # the official FLOPs hold halves
            steps = np.ceil(layers / self._step + self._slip).astype(np.int64)
            for d in space.depth:
                left = [_Sums(np.zeros(1, np.int64), np.array([0.0, 1.0]))]
                for layer in steps[:d][::-1]:
                    left.append(_with_layer(left[-1], layer.ravel()))
                self._left[e, d] = left[::-1]
            self._layers[e] = steps

    def window(self, budget: float) -> Window:
        """The feasible costs of a budget tau.

        Raises:
            UserError: no architecture lies there; names the nearest possible budget.
        """
        window = Window(self.least * budget, budget)
        if not self.feasible(budget):
            raise UserError(
                f"no architecture of the space has {self.name} from {window.low:.6g} to {window.high:.6g}; "
                f"the space reaches from {self.smallest:.6g} to {self.largest:.6g}, "
                f"and the nearest possible budget is {self._named(self.nearest(budget))}"
            )
        return window

    def feasible(self, budget: float) -> bool:
        """Whether any architecture meets a budget."""
        return self.count(Window(self.least * budget, budget)) > 0

    @property
    def smallest(self) -> float:
        """The least cost of any architecture."""
        return float(self._all.values[0] * self._step)

    @property
    def largest(self) -> float:
        """The largest cost of any architecture."""
        return float(self._all.values[-1] * self._step)

    def nearest(self, budget: float) -> float:
        """The possible cost nearest to a budget: a feasible budget itself."""
        costs = self._all.values * self._step
        return float(costs[np.abs(costs - budget).argmin()])

    def _named(self, budget: float) -> str:
        """A budget in six digits, rounded up, so that what a message names is possible itself; in full if it is not."""
        last = 10.0 ** (math.floor(math.log10(budget)) - 5)
        text = f"{math.ceil(budget / last) * last:.6g}"
        return text if self.feasible(float(text)) else f"{budget!r}"

    def count(self, window: Window) -> int:
        """How many architectures lie in a window."""
        return int(self.depths(window).sum())

    def quantile(self, share: float) -> float:
        """The cost below or at which that share of all architectures lies, each weighing the same."""
        ways = self._all.ways[1:]
        return float(self._all.values[np.searchsorted(ways, share * ways[-1]).clip(0, len(ways) - 1)] * self._step)

    def anchors(
        self, count: int, spacing: Literal["even", "log", "quantile"] = "even", ends: tuple[float, float] = (0.01, 0.99)
    ) -> tuple[float, ...]:
        """Budgets between two quantiles of the cost: evenly or log-spaced, or with as many architectures between each.

        Raises:
            UserError: fewer than one, or no architecture within the window of one of them.
        """
        if count < 1:
            raise UserError(f"{count} anchors: need at least 1")
        low, high = (self.quantile(share) for share in ends)
        if spacing == "quantile":
            found = [self.quantile(share) for share in np.linspace(*ends, count)]
        else:
            found = list((np.geomspace if spacing == "log" else np.linspace)(low, high, count))
        for anchor in found:
            self.window(anchor)
        return tuple(map(float, found))

    # The next choice, after a prefix: how many feasible architectures lie behind each

    def depths(self, window: Window) -> NDArray[np.float64]:
        """(|d|,): feasible architectures by depth."""
        return np.array([[self._behind(window, e, d) for e in self.space.embed] for d in self.space.depth]).sum(1)

    def embeds(self, window: Window, depth: int) -> NDArray[np.float64]:
        """(|e|,): feasible architectures by width, when the depth is chosen."""
        return np.array([self._behind(window, e, depth) for e in self.space.embed])

    def layer(self, window: Window, depth: int, embed: int, index: int, spent: int) -> NDArray[np.float64]:
        """(|h|, |r|): feasible architectures by heads and MLP ratio of layer `index`.

        Args:
            spent: 0 for the first layer, then what `spend` of the layer before returned.
        """
        here = spent + self._layers[embed][index]
        low, high = self._bounds(window, depth)
        return self._left[embed, depth][index + 1].between(low - here, high - here)

    def spend(self, spent: int, embed: int, index: int, heads: int, ratio: int) -> int:
        """`spent` with a layer added, whose heads and ratio are given as positions among the choices."""
        return spent + int(self._layers[embed][index, heads, ratio])

    def sample_uniform(self, window: Window, rng: random.Random) -> Architecture:
        """A feasible architecture, each at the same chance: no draw is thrown away.

        Raises:
            UserError: there is none.
        """
        if not self.count(window):
            self.window(window.high)  # says so, unless the window is a narrower one
            raise UserError(f"no architecture of the space has {self.name} from {window.low:g} to {window.high:g}")
        space = self.space
        depth = space.depth[_pick(self.depths(window), rng)]
        embed = space.embed[_pick(self.embeds(window, depth), rng)]
        heads, ratios, spent = [], [], 0
        for index in range(depth):
            h, r = divmod(_pick(self.layer(window, depth, embed, index, spent).ravel(), rng), len(space.ratios))
            heads.append(space.heads[h])
            ratios.append(space.ratios[r])
            spent = self.spend(spent, embed, index, h, r)
        return Architecture(embed, tuple(heads), tuple(ratios))

    def _behind(self, window: Window, embed: int, depth: int) -> float:
        low, high = self._bounds(window, depth)
        return float(self._left[embed, depth][0].between(np.array(low), np.array(high)))

    def _bounds(self, window: Window, depth: int) -> tuple[int, int]:
        """The window in steps; narrowed from below by more than d summands were rounded up by."""
        low = math.ceil(window.low / self._step) + self._rounded * (depth + 1) if window.low > 0 else 0
        return low, math.floor(window.high / self._step + self._slip)

    @cached_property
    def _all(self) -> _Sums:
        whole = [sums[0] for sums in self._left.values()]
        sums = np.concatenate([part.values for part in whole])
        return _counted(sums, np.concatenate([np.diff(part.ways) for part in whole]))


def _with_layer(left: _Sums, layer: NDArray[np.int64]) -> _Sums:
    """The sums with one more layer."""
    return _counted((left.values[:, None] + layer).ravel(), np.repeat(np.diff(left.ways), len(layer)))


def _counted(sums: NDArray[np.int64], ways: NDArray[np.float64]) -> _Sums:
    values, where = np.unique(sums, return_inverse=True)
    return _Sums(values, np.concatenate([[0.0], np.cumsum(np.bincount(where, ways))]))


def _pick(weights: NDArray[np.float64], rng: random.Random) -> int:
    return rng.choices(range(len(weights)), weights.tolist())[0]


def _summands(space: SearchSpace, cost: Callable[[Architecture], float], embed: int) -> NDArray[np.float64]:
    """(max depth, |h|, |r|): what each layer adds to the cost; the first one bears what is fixed as well."""
    h0, r0 = space.heads[0], space.ratios[0]
    rows = []
    for index in range(max(space.depth)):
        before = cost(Architecture(embed, (h0,) * index, (r0,) * index)) if index else 0.0
        rows.append(
            [
                [cost(Architecture(embed, (h0,) * index + (h,), (r0,) * index + (r,))) - before for r in space.ratios]
                for h in space.heads
            ]
        )
    return np.array(rows, np.float64)
