"""The sampler is a distribution over exactly the feasible architectures, and its modes are found."""

import math
import random
from typing import Any

import pytest
import torch

from focusformer.method.architecture import SPACES, Architecture
from focusformer.method.cost import costs_of
from focusformer.method.reachable import Reachable
from focusformer.method.sampler import ArchitectureSampler, ConstraintEmbedding
from paperkit.errors import UserError

DIGITS = SPACES["digits"]
REACH = Reachable(DIGITS, costs_of(DIGITS.sizes, "macs"), "macs", 0.75)
ANCHORS = REACH.anchors(4, "log", (0.05, 0.95))


def made(policy: Any = "lstm", seed: int = 0, **options: Any) -> ArchitectureSampler:
    """With weights that prefer something."""
    torch.manual_seed(seed)
    sampler = ArchitectureSampler(REACH, ANCHORS, policy, **options)
    for parameter in sampler.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return sampler


def feasible(budget: float) -> list[Architecture]:
    window = REACH.window(budget)
    return [architecture for architecture in DIGITS if window.holds(REACH.cost(architecture))]


@pytest.mark.parametrize("policy", ["lstm", "table"])
def test_probabilities_of_the_feasible_sum_to_one(policy: str) -> None:
    """Were tokens of absent layers counted, or masks too wide or too narrow, the sum would be another."""
    sampler = made(policy)
    with torch.no_grad():
        for budget in (ANCHORS[0], 1.1 * ANCHORS[1]):
            assert sampler.log_prob(budget, feasible(budget)).log_prob.exp().sum().item() == pytest.approx(1, abs=1e-4)
        free = made(policy, masking=False)
        everything = free.log_prob(ANCHORS[0], list(DIGITS)).log_prob.exp().sum().item()
    assert everything == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("policy", ["lstm", "table"])
def test_samples_are_feasible_and_carry_their_own_probability(policy: str) -> None:
    sampler = made(policy)
    budgets = [ANCHORS[i % 4] for i in range(64)]
    drawn = sampler.sample(budgets, 64, torch.Generator().manual_seed(1))
    assert all(REACH.window(b).holds(REACH.cost(a)) for a, b in zip(drawn.architectures, budgets, strict=True))
    again = sampler.log_prob(budgets, drawn.architectures)
    torch.testing.assert_close(again.log_prob, drawn.log_prob)
    torch.testing.assert_close(again.entropy, drawn.entropy)
    same = sampler.sample(budgets, 64, torch.Generator().manual_seed(1)).architectures
    assert same == drawn.architectures and len(set(same)) > 20
    assert drawn.log_prob.requires_grad and ((drawn.entropy >= 0) & (drawn.entropy <= 1)).all()


def test_the_first_policy_is_uniform_and_its_entropy_one() -> None:
    sampler = ArchitectureSampler(REACH, ANCHORS, masking=False)
    rng = random.Random(0)
    some = [DIGITS.sample_uniform(rng) for _ in range(20)]
    found = sampler.log_prob(ANCHORS[0], some)
    wanted = [-math.log(3) - math.log(4) - a.depth * math.log(12) for a in some]
    torch.testing.assert_close(found.log_prob, torch.tensor(wanted))
    torch.testing.assert_close(found.entropy, torch.ones(20))


@pytest.mark.parametrize("policy", ["lstm", "table"])
def test_a_beam_finds_the_likeliest_in_order(policy: str) -> None:
    sampler, budget = made(policy), ANCHORS[0]
    every = feasible(budget)
    with torch.no_grad():
        chances = sampler.log_prob(budget, every).log_prob
    wanted = [every[i] for i in chances.argsort(descending=True).tolist()]
    found = sampler.beam(budget, len(every))
    assert len(found) == len(set(found)) == len(every) and found[:20] == wanted[:20]
    assert sampler.beam(budget, 1) == [sampler.greedy(budget)]
    few = sampler.beam(budget, 30)
    assert len(few) == 30 and wanted[0] in few


def test_an_lstm_sees_the_tokens_before_and_a_table_does_not() -> None:
    """Of one budget, the width given the depth."""
    for policy, depends in (("lstm", True), ("table", False)):
        sampler = made(policy, masking=False)
        ratios = []
        for depth in (1, 2):
            pair = [Architecture(e, (1,) * depth, (0.5,) * depth) for e in (16, 48)]
            first, second = sampler.log_prob(ANCHORS[1], pair).log_prob.tolist()
            ratios.append(first - second)
        assert (abs(ratios[0] - ratios[1]) > 1e-3) == depends


def test_constraints_between_anchors_are_interpolated_and_outside_clamped() -> None:
    embedding = ConstraintEmbedding([1.0, 2.0, 4.0])
    rows = embedding.rows
    torch.testing.assert_close(embedding(3.5), 0.25 * rows[1] + 0.75 * rows[2])
    for budget, row in ((1.0, 0), (0.1, 0), (4.0, 2), (9.0, 2)):
        torch.testing.assert_close(embedding(budget), rows[row])
    assert [embedding.nearest(b) for b in (0.0, 1.4, 1.6, 3.5)] == [0, 0, 1, 2]
    with pytest.warns(UserWarning, match="outside the sampler's anchors"):
        made().greedy(1.01 * ANCHORS[-1])
    with pytest.raises(UserError, match="ascending"):
        ConstraintEmbedding([2.0, 1.0])


def test_several_kinds_of_constraint_share_one_policy() -> None:
    params = Reachable(DIGITS, costs_of(DIGITS.sizes, "params"), "params", 0.75)
    sampler = ArchitectureSampler([REACH, params], [ANCHORS, params.anchors(3)])
    budget = params.anchors(3)[1]
    drawn = sampler.sample(budget, 20, torch.Generator().manual_seed(0), "params").architectures
    assert all(params.window(budget).holds(params.cost(a)) for a in drawn) and sampler.kinds == ["macs", "params"]
    with pytest.raises(UserError, match="knows no 'latency'; it was trained for: macs, params"):
        sampler.greedy(budget, "latency")


def test_logits_are_bounded_as_asked() -> None:
    logits = torch.tensor([-30.0, 1.0, 30.0])
    torch.testing.assert_close(made(clip=4.0).shaped(logits), torch.tensor([-4.0, 1.0, 4.0]))
    torch.testing.assert_close(made(tanh=2.5, temperature=2.0).shaped(logits), 2.5 * torch.tanh(logits / 2))


def test_chances_are_shares_of_what_is_drawn() -> None:
    found = made().chances(ANCHORS[2], 40, torch.Generator().manual_seed(0))
    assert found["depth"].sum() == pytest.approx(1) and found["embed"].shape == (4,)
    assert found["heads"].shape == (3, 3) and found["ratios"].shape == (3, 4)
    sums = found["heads"].sum(1)
    assert ((sums - 1).abs() < 1e-6).logical_or(sums == 0).all() and sums[0] > 0


def test_what_cannot_be_is_refused() -> None:
    generator = torch.Generator()
    for options, words in (
        ({"policy": "gru"}, "policy 'gru' does not exist; known: lstm, table"),
        ({"temperature": 0.0}, "temperature 0 must be above 0"),
        ({"clip": -1.0}, "clip -1 at least 0"),
    ):
        with pytest.raises(UserError, match=words):
            ArchitectureSampler(REACH, ANCHORS, **options)
    with pytest.raises(UserError, match="nearest possible budget"):
        made().sample(REACH.smallest / 2, 1, generator)
    with pytest.raises(UserError, match="2 budgets for 3 architectures"):
        made().sample([ANCHORS[0]] * 2, 3, generator)
    with pytest.raises(UserError, match="beam width 0"):
        made().beam(ANCHORS[0], 0)
    with pytest.raises(UserError, match="none of the space's"):
        made().log_prob(ANCHORS[0], [Architecture(20, (1,), (0.5,))])
