"""Rewards, baselines and the update, against the formulas."""

import pytest
import torch

from focusformer.method.architecture import SPACES
from focusformer.method.cost import costs_of
from focusformer.method.reachable import Reachable
from focusformer.method.reinforce import Reinforce, ReinforceOptions, RewardOptions, Scores, mean_over_ranks, reward
from focusformer.method.sampler import ArchitectureSampler
from paperkit.errors import UserError

DIGITS = SPACES["digits"]
REACH = Reachable(DIGITS, costs_of(DIGITS.sizes, "macs"), "macs", 0.75)
ANCHORS = REACH.anchors(4, "log", (0.05, 0.95))
SCORES = Scores(torch.tensor([0.5, 0.8, 0.9]), torch.tensor([1.0, 0.5, 0.0]))


def test_kinds_of_reward() -> None:
    costs, budgets = [80.0, 100.0, 150.0], [100.0] * 3
    for options, wanted in (
        (RewardOptions(), [0.5, 0.8, 0.9]),
        (RewardOptions("likelihood"), [0.36788, 0.60653, 1.0]),
        (RewardOptions(penalty="absolute"), [0.3, 0.8, 0.4]),
        (RewardOptions(penalty="hinge", beta=2.0), [0.5, 0.8, -0.1]),
        (RewardOptions(penalty="hard"), [0.5, 0.8, 0.0]),
    ):
        torch.testing.assert_close(reward(SCORES, costs, budgets, options), torch.tensor(wanted), atol=1e-5, rtol=0)
    assert mean_over_ranks(SCORES) is SCORES
    with pytest.raises(UserError, match="reward penalty 'soft' does not exist"):
        RewardOptions(penalty="soft")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="beta -1"):
        RewardOptions(beta=-1)


def learner(**options: object) -> Reinforce:
    torch.manual_seed(0)
    return Reinforce(ArchitectureSampler(REACH, ANCHORS), ReinforceOptions(**options))  # type: ignore[arg-type]


def test_baselines() -> None:
    low, high = ANCHORS[0], ANCHORS[3]
    one = learner(baseline="anchor", decay=0.9)
    first = one.advantages(torch.tensor([0.2, 0.8, 0.9]), [low, high, high], "macs")
    torch.testing.assert_close(first, torch.tensor([0.0, 0.0, 0.1]))  # each anchor begins at its first reward
    then = one.advantages(torch.tensor([0.3]), [low], "macs")
    assert then.item() == pytest.approx(0.1) and one.averages["macs 0"] == pytest.approx(0.21)
    assert one.averages["macs 3"] == pytest.approx(0.81)
    shared = learner(baseline="shared")
    torch.testing.assert_close(
        shared.advantages(torch.tensor([0.2, 0.8]), [low, high], "macs"), torch.tensor([0.0, 0.6])
    )
    group = learner(baseline="group").advantages(torch.tensor([1.0, 3.0, 5.0, 5.0]), [low, low, high, high], "macs")
    torch.testing.assert_close(group, torch.tensor([-1.0, 1.0, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_an_update_is_the_policy_gradient() -> None:
    one = learner(optimizer="sgd", lr=0.5, clip=1e9, entropy=0.2, baseline="group")
    with torch.no_grad():
        for parameter in one.sampler.parameters():
            parameter.normal_(std=0.3)
    before = [parameter.detach().clone() for parameter in one.sampler.parameters()]
    budgets = [ANCHORS[1]] * 4
    samples = one.sampler.sample(budgets, 4, torch.Generator().manual_seed(0))
    rewards = torch.tensor([0.1, 0.5, 0.2, 0.7])
    deviation = rewards.std(correction=0)
    gain = ((rewards - rewards.mean()) / (deviation + 1e-6) * samples.log_prob).mean()
    gain = gain + 0.2 * (1 - 0.25) * samples.entropy.mean()
    gradients = torch.autograd.grad(gain, list(one.sampler.parameters()), retain_graph=True, allow_unused=True)
    one.update(samples, rewards, budgets, "macs", progress=0.25)
    for old, gradient, new in zip(before, gradients, one.sampler.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old if gradient is None else old + 0.5 * gradient)


def test_what_was_learned_is_saved() -> None:
    one, two = learner(), learner()
    for steps, learners in ((2, (one,)), (1, (one, two))):
        if steps == 1:
            two.sampler.load_state_dict(one.sampler.state_dict())
            two.load_state_dict(one.state_dict())
        for step in range(steps):
            for each in learners:
                samples = each.sampler.sample(list(ANCHORS), 4, torch.Generator().manual_seed(step))
                each.update(samples, torch.tensor([0.1, 0.9, 0.4, 0.3]), ANCHORS, "macs", 0.1)
    assert one.averages == two.averages and len(one.averages) == 4
    for a, b in zip(one.sampler.parameters(), two.sampler.parameters(), strict=True):
        assert torch.equal(a, b)


def test_impossible_options() -> None:
    for options, words in (
        ({"optimizer": "lion"}, "sampler optimizer 'lion' does not exist; known: adam, sgd"),
        ({"baseline": "none"}, "sampler baseline 'none'"),
        ({"lr": 0.0}, "sampler lr 0"),
        ({"decay": 1.0}, "decay 1"),
    ):
        with pytest.raises(UserError, match=words):
            ReinforceOptions(**options)  # type: ignore[arg-type]
