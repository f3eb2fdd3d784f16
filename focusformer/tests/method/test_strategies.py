"""Five strategies behind one loop: what they train, that ranks and resumed runs agree, that the sampler learns."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from focusformer.method.architecture import SPACES, Architecture
from focusformer.method.cost import costs_of
from focusformer.method.reachable import Reachable
from focusformer.method.reinforce import Reinforce, ReinforceOptions, Scores
from focusformer.method.sampler import ArchitectureSampler
from focusformer.method.strategies import (
    BestOfK,
    Focus,
    FocusOptions,
    Pass,
    ResourceUniform,
    Sandwich,
    Strategy,
    Uniform,
    Update,
    jittered,
    training_losses,
)
from paperkit.errors import UserError

DIGITS = SPACES["digits"]
REACH = Reachable(DIGITS, costs_of(DIGITS.sizes, "macs"), "macs", 0.75)
ANCHORS = REACH.anchors(4, "log", (0.05, 0.95))


def quality(architecture: Architecture) -> float:
    """A stand-in for accuracy: deep networks with thin MLPs."""
    return 0.5 + 0.1 * architecture.depth - 0.05 * sum(architecture.ratios) / architecture.depth


def evaluate(architectures: list[Architecture]) -> Scores:
    accuracy = torch.tensor([quality(architecture) for architecture in architectures])
    return Scores(accuracy, 1 - accuracy)


def focus(seed: int = 0, *, steps: int = 40, interval: int = 2, masking: bool = True, **options: Any) -> Focus:
    torch.manual_seed(0)
    sampler = ArchitectureSampler(REACH, ANCHORS, masking=masking)
    baseline = options.pop("baseline", "group")
    reinforce = Reinforce(sampler, ReinforceOptions(baseline=baseline, lr=0.01))
    return Focus(sampler, reinforce, seed, FocusOptions(steps, interval=interval, samples=4, **options))


STRATEGIES: dict[str, Callable[[int], Strategy]] = {
    "uniform": lambda seed: Uniform(DIGITS, seed),
    "resource-uniform": lambda seed: ResourceUniform(REACH, ANCHORS, seed),
    "sandwich": lambda seed: Sandwich(DIGITS, seed),
    "best-of-k": lambda seed: BestOfK(REACH, ANCHORS, seed, k=3),
    "focus": lambda seed: focus(seed),
}


def ran(strategy: Strategy, steps: range) -> tuple[list[list[Pass]], list[Update]]:
    passes, updates = [], []
    for step in steps:
        passes.append(strategy.plan(step, evaluate))
        if (update := strategy.learn(step, evaluate)) is not None:
            updates.append(update)
    return passes, updates


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_ranks_agree_whatever_the_global_generators_and_seeds_differ(name: str) -> None:
    torch.manual_seed(1)
    first = ran(STRATEGIES[name](5), range(40))
    torch.manual_seed(2)
    assert ran(STRATEGIES[name](5), range(40)) == first
    assert ran(STRATEGIES[name](6), range(40))[0] != first[0]


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_resumed_run_goes_on_as_if_nothing_had_been(name: str) -> None:
    whole, killed, resumed = (STRATEGIES[name](5) for _ in range(3))
    wanted = ran(whole, range(40))
    head = ran(killed, range(23))
    resumed.load_state_dict(killed.state_dict())
    tail = ran(resumed, range(23, 40))
    assert (head[0] + tail[0], head[1] + tail[1]) == wanted
    assert (resumed.draws, resumed.evaluations) == (whole.draws, whole.evaluations)
    if isinstance(whole, Focus) and isinstance(resumed, Focus):
        for a, b in zip(whole.sampler.parameters(), resumed.sampler.parameters(), strict=True):
            assert torch.equal(a, b)


def test_what_each_step_trains() -> None:
    steps = range(60)
    largest, smallest = DIGITS.largest(), DIGITS.smallest()
    for passes in ran(STRATEGIES["sandwich"](0), steps)[0]:
        assert [one.distil for one in passes] == [False, True, True, True]
        assert (passes[0].architecture, passes[1].architecture) == (largest, smallest)
    picked = BestOfK(REACH, ANCHORS, 0, k=20)
    best = sum(quality(passes[0].architecture) for passes in ran(picked, steps)[0])
    assert best > sum(quality(passes[0].architecture) for passes in ran(STRATEGIES["resource-uniform"](0), steps)[0])
    assert (picked.draws, picked.evaluations) == (1200, 1200)
    costs = [REACH.cost(passes[0].architecture) for passes in ran(STRATEGIES["resource-uniform"](0), steps)[0]]
    below = sum(cost <= ANCHORS[1] for cost in costs)
    assert 20 <= below <= 50  # half the budgets; of all architectures a sixth lies there
    assert REACH.count(REACH.window(ANCHORS[1])) < DIGITS.size() / 6


def test_the_sampler_finds_what_is_rewarded_at_every_budget() -> None:
    strategy = focus(steps=500, jitter=False, exploration=0.0, warmup=0.02)
    _, updates = ran(strategy, range(500))
    assert len(updates) == 245 and all(all(update.feasible) for update in updates)
    first, last = (sum(u.means["reward"] for u in some) / 20 for some in (updates[:20], updates[-20:]))
    assert last > first + 0.1 and updates[-1].means["entropy"] < 0.2 < updates[0].means["entropy"]
    for anchor in ANCHORS:
        window = REACH.window(anchor)
        most = max(quality(a) for a in DIGITS if window.holds(REACH.cost(a)))
        assert quality(strategy.sampler.greedy(anchor)) > most - 0.05
    assert strategy.evaluations == 4 * 245 and strategy.draws == 4 * 245 + 500


def test_warm_up_exploration_and_constraints() -> None:
    strategy = focus(steps=100, interval=5, warmup=0.2, focused=0.5, exploration=0.0, constraints=2)
    passes, updates = ran(strategy, range(100))
    assert [update.step for update in updates] == list(range(20, 100, 5))
    assert all(len(set(update.budgets)) == 2 for update in updates)
    assert passes[:50] == ran(Uniform(DIGITS, 0), range(50))[0]  # paired seeds train the same in the warm-up
    alone = focus(steps=100, warmup=0.0, baseline="anchor", jitter=False)
    assert all(set(u.budgets) <= set(ANCHORS) and len(set(u.anchors)) > 1 for u in ran(alone, range(20))[1][:1])


def test_without_masks_what_is_too_dear_is_never_the_fallback() -> None:
    strategy = focus(masking=False, warmup=0.0, exploration=0.0, jitter=False)
    with torch.no_grad():  # a policy that only wants the largest network
        strategy.sampler.policy.heads["depth"].bias[-1] = 50.0  # type: ignore[index, union-attr]
        strategy.sampler.policy.heads["embed"].bias[-1] = 50.0  # type: ignore[index, union-attr]
    for step in range(20):
        (one,) = strategy.plan(step, evaluate)
        assert REACH.cost(one.architecture) <= 1.05 * ANCHORS[-1]
    assert strategy.draws > 60
    update = strategy.learn(0, evaluate)
    assert update is not None and update.means["feasible"] < 1 and update.means["distance"] > 0


class Toy(nn.Module):
    """One weight; an architecture's width scales it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor, architecture: Architecture) -> Tensor:
        return images @ self.weight * architecture.embed / 16


def test_gradients_are_the_mean_of_the_passes_and_the_first_one_teaches() -> None:
    passes = Sandwich(DIGITS, 0, middle=1).plan(0, evaluate)
    images, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    net, reference = Toy(), Toy()
    losses = training_losses(net, passes, images, labels, nn.functional.cross_entropy, torch.Tensor.backward)
    logits = [reference(images, one.architecture) for one in passes]
    soft = logits[0].detach().softmax(1)
    wanted = [nn.functional.cross_entropy(logits[0], labels)]
    wanted += [-(soft * one.log_softmax(1)).sum(1).mean() for one in logits[1:]]
    torch.testing.assert_close(losses, [loss.detach() for loss in wanted])
    (sum(wanted) / 3).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(net.weight.grad, reference.weight.grad)
    with pytest.raises(UserError, match="no outputs to learn from"):
        training_losses(net, passes[1:], images, labels, nn.functional.cross_entropy, torch.Tensor.backward)


def test_budgets_stay_in_their_cells() -> None:
    for at, (low, high) in enumerate([(ANCHORS[max(i - 1, 0)], ANCHORS[min(i + 1, 3)]) for i in range(4)]):
        drawn = [jittered(REACH, ANCHORS, at, random.Random(i)) for i in range(50)]
        assert min(drawn) >= (ANCHORS[at] + low) / 2 and max(drawn) <= (ANCHORS[at] + high) / 2


def test_impossible_options() -> None:
    for options, words in (
        ({"interval": 0}, "interval 0"),
        ({"exploration": 1.5}, "exploration 1.5"),
        ({"constraints": 3}, "4 samples are no multiple of 3 constraints"),
        ({"constraints": 4}, "several samples for a budget"),
    ):
        with pytest.raises(UserError, match=words):
            focus(**options)
    with pytest.raises(UserError, match="sandwich of -1"):
        Sandwich(DIGITS, 0, middle=-1)
    with pytest.raises(UserError, match="best of 0"):
        BestOfK(REACH, ANCHORS, 0, k=0)
