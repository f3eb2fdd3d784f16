"""Exact masks: against a count of every architecture, not against the interval that bounds them."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from focusformer.method.architecture import SPACES, Architecture, SearchSpace
from focusformer.method.cost import COUNTERS, LatencyTable, costs_of
from focusformer.method.reachable import Reachable, Window
from paperkit.errors import UserError

DIGITS = SPACES["digits"]
SMALL = replace(DIGITS, embed=(16, 24), depth=(1, 2), heads=(1, 2), ratios=(0.5, 1.0, 2.0))


def of(space: SearchSpace, kind: str = "macs", least: float = 0.75) -> Reachable:
    return Reachable(space, costs_of(space.sizes, kind), kind, least)


@pytest.mark.parametrize("kind", list(COUNTERS))
def test_counts_are_those_of_all_architectures(kind: str) -> None:
    reach = of(DIGITS, kind, 0.9)
    costs = np.array([reach.cost(architecture) for architecture in DIGITS])
    assert (reach.smallest, reach.largest) == (costs.min(), costs.max())
    assert reach.count(Window(0, reach.largest)) == len(costs) == DIGITS.size()
    for budget in reach.anchors(7, "quantile"):
        window = reach.window(budget)
        assert reach.count(window) == ((costs >= 0.9 * budget) & (costs <= budget)).sum() > 0
    assert reach.quantile(0.3) == np.quantile(costs, 0.3, method="inverted_cdf")


def test_a_choice_is_allowed_exactly_if_an_architecture_lies_behind_it() -> None:
    """Every prefix of every architecture, in narrow windows where the interval test is wrong."""
    reach = of(SMALL)
    every = [(architecture, reach.cost(architecture)) for architecture in SMALL]
    window = Window(0.97 * every[40][1], every[40][1])
    feasible = [architecture for architecture, cost in every if window.holds(cost)]
    depths = [sum(a.depth == d for a in feasible) for d in SMALL.depth]
    assert reach.depths(window).tolist() == depths
    for depth in SMALL.depth:
        here = [a for a in feasible if a.depth == depth]
        assert reach.embeds(window, depth).tolist() == [sum(a.embed == e for a in here) for e in SMALL.embed]
    for architecture, _ in every:
        spent = 0
        for i in range(architecture.depth):
            same = [
                a
                for a in feasible
                if (a.depth, a.embed, a.heads[:i], a.ratios[:i])
                == (architecture.depth, architecture.embed, architecture.heads[:i], architecture.ratios[:i])
            ]
            found = reach.layer(window, architecture.depth, architecture.embed, i, spent)
            wanted = [
                [sum((a.heads[i], a.ratios[i]) == (h, r) for a in same) for r in SMALL.ratios] for h in SMALL.heads
            ]
            assert found.tolist() == wanted
            at = SMALL.heads.index(architecture.heads[i]), SMALL.ratios.index(architecture.ratios[i])
            spent = reach.spend(spent, architecture.embed, i, *at)


def test_uniform_draws_are_uniform_among_the_feasible() -> None:
    reach, rng = of(SMALL), random.Random(0)
    window = reach.window(reach.quantile(0.7))
    drawn = Counter(reach.sample_uniform(window, rng) for _ in range(200 * reach.count(window)))
    assert set(drawn) == {a for a in SMALL if window.holds(reach.cost(a))} and len(drawn) > 5
    assert all(abs(count - 200) < 6 * 200**0.5 for count in drawn.values())


@pytest.mark.parametrize("name", ["ti", "s", "b"])
def test_large_spaces_down_to_narrow_windows(name: str) -> None:
    space, rng = SPACES[name], random.Random(0)
    reach = of(space, "official_flops", 0.99)
    assert reach.smallest == reach.cost(space.smallest()) and reach.largest == reach.cost(space.largest())
    assert reach.count(Window(0, reach.largest)) == space.size()
    for budget in reach.anchors(5):
        window = reach.window(budget)
        assert all(window.holds(reach.cost(reach.sample_uniform(window, rng))) for _ in range(20))


def test_measured_latencies_are_kept_without_a_miss() -> None:
    rng = random.Random(0)
    blocks = {(e, h, r): rng.uniform(0.1, 3) for e in DIGITS.embed for h in DIGITS.heads for r in DIGITS.ratios}
    table = LatencyTable({e: rng.uniform(1, 2) for e in DIGITS.embed}, blocks)
    reach = Reachable(DIGITS, table, "latency")
    costs = [table(architecture) for architecture in DIGITS]
    for budget in reach.anchors(5):
        window = reach.window(budget)
        held = sum(map(window.holds, costs))
        assert 0.97 * held <= reach.count(window) <= held
        assert all(window.holds(table(reach.sample_uniform(window, rng))) for _ in range(50))


def test_a_budget_out_of_reach_names_the_nearest() -> None:
    reach = of(DIGITS)
    for budget, nearest in ((reach.smallest / 2, reach.smallest), (2 * reach.largest, reach.largest)):
        assert reach.nearest(budget) == nearest
        with pytest.raises(
            UserError, match=rf"no architecture .* nearest possible budget is {nearest:.6g}".replace("+", r"\+")
        ):
            reach.window(budget)
    assert reach.feasible(reach.largest) and not reach.feasible(reach.smallest - 1)
    with pytest.raises(UserError, match="no architecture"):
        reach.sample_uniform(Window(reach.largest - 0.9, reach.largest - 0.5), random.Random(0))
    with pytest.raises(UserError, match="least share of a budget is 1"):
        of(DIGITS, least=1.0)
    with pytest.raises(UserError, match="0 anchors"):
        reach.anchors(0)


def test_costs_are_of_the_architecture_itself() -> None:
    """What `spend` adds up is the cost, whatever the order of the layers."""
    reach = of(DIGITS)
    architecture = Architecture(32, (4, 1, 2), (0.5, 4.0, 2.0))
    spent = 0
    for i, (h, r) in enumerate(zip(architecture.heads, architecture.ratios, strict=True)):
        spent = reach.spend(spent, 32, i, DIGITS.heads.index(h), DIGITS.ratios.index(r))
    cost = reach.cost(architecture)
    ways = reach.layer(Window(cost, cost), 3, 32, 2, reach.spend(reach.spend(0, 32, 0, 2, 0), 32, 1, 0, 3))
    assert spent == 2 * cost and ways[DIGITS.heads.index(2), DIGITS.ratios.index(2.0)] == 1
