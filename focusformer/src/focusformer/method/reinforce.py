"""How the sampler learns: policy gradient on held-out rewards (a reference design: the authors' is not public).

    theta <- theta + lr [ mean_m (R_m - b) grad log pi(alpha_m | tau_m) + lambda_H grad H ]

The reward R of an architecture is its quality on one held-out batch, the same for all architectures of an update, less
a penalty for missing its budget. Under exact masks nothing misses it, so that no penalty is the default there. The
baseline b belongs to a budget: larger ones earn more, whatever is chosen for them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, distributed

from focusformer.method.sampler import ArchitectureSampler, Samples
from paperkit.errors import UserError

DEVIATION = 1e-6
"""Added to a group's standard deviation."""


class Scores(NamedTuple):
    """Of n architectures on one held-out batch: top-1 accuracy in [0, 1] and mean cross-entropy, (n,) each."""

    accuracy: Tensor
    loss: Tensor


@dataclass(frozen=True)
class RewardOptions:
    """What is rewarded.

    Args:
        quality: "accuracy" in [0, 1], or "likelihood", exp(-cross-entropy), which is smoother on small batches.
        penalty: of a cost C under a budget tau: "none"; "absolute" -beta |C / tau - 1|; "hinge"
            -beta max(0, C / tau - 1), under which small architectures, which learn faster, take over; "hard", no
            reward at all where C > tau.
        beta: its weight.

    Raises:
        UserError: an unknown name, or a negative weight.
    """

    quality: Literal["accuracy", "likelihood"] = "accuracy"
    penalty: Literal["none", "absolute", "hinge", "hard"] = "none"
    beta: float = 1.0

    def __post_init__(self) -> None:
        _known("reward quality", self.quality, ("accuracy", "likelihood"))
        _known("reward penalty", self.penalty, ("none", "absolute", "hinge", "hard"))
        if self.beta < 0:
            raise UserError(f"reward beta {self.beta:g} is below 0")


def reward(scores: Scores, costs: Sequence[float], budgets: Sequence[float], options: RewardOptions) -> Tensor:
    """(n,) R = quality + penalty(C / tau)."""
    quality = scores.accuracy if options.quality == "accuracy" else torch.exp(-scores.loss)
    quality = quality.detach().float().cpu()
    excess = (torch.tensor(costs, dtype=torch.float64) / torch.tensor(budgets, dtype=torch.float64) - 1).float()
    if options.penalty == "absolute":
        return quality - options.beta * excess.abs()
    if options.penalty == "hinge":
        return quality - options.beta * excess.clamp_min(0)
    return quality.where(excess <= 0, 0.0) if options.penalty == "hard" else quality


def mean_over_ranks(scores: Scores) -> Scores:
    """The scores averaged over all data-parallel processes, so that each makes the same update of its sampler."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return scores
    both = torch.stack([scores.accuracy.float(), scores.loss.float()])
    distributed.all_reduce(both)
    return Scores(*(both / distributed.get_world_size()))


@dataclass(frozen=True)
class ReinforceOptions:
    """How the policy is updated.

    Args:
        optimizer, lr: "adam" with betas (0.9, 0.999), or plain "sgd"; no weight decay.
        clip: largest norm of the gradient.
        entropy: lambda_H at the start, for entropies in units of log(choices); it falls linearly to 0.
        baseline: "anchor", a moving average for each anchor; "shared", one for all, which is wrong wherever large
            budgets earn more; "group", advantages (R - mean) / (std + 1e-6) within the samples of one budget.
        decay: of the moving averages.

    Raises:
        UserError: an unknown name or an impossible number.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    clip: float = 1.0
    entropy: float = 0.01
    baseline: Literal["anchor", "shared", "group"] = "anchor"
    decay: float = 0.95

    def __post_init__(self) -> None:
        _known("sampler optimizer", self.optimizer, ("adam", "sgd"))
        _known("sampler baseline", self.baseline, ("anchor", "shared", "group"))
        if self.lr <= 0 or self.clip <= 0 or self.entropy < 0 or not 0 <= self.decay < 1:
            raise UserError(
                f"sampler lr {self.lr:g} and clip {self.clip:g} must be above 0, entropy {self.entropy:g} at least 0 "
                f"and decay {self.decay:g} in [0, 1)"
            )


class Reinforce:
    """Updates a sampler by rewards of what it drew.

    Args:
        sampler: its parameters are changed in place.
        options: of the update.
    """

    def __init__(self, sampler: ArchitectureSampler, options: ReinforceOptions | None = None) -> None:
        self.sampler, self.options = sampler, options or ReinforceOptions()
        kind = torch.optim.Adam if self.options.optimizer == "adam" else torch.optim.SGD
        self.optimizer: torch.optim.Optimizer = kind(sampler.parameters(), lr=self.options.lr)
        self.averages: dict[str, float] = {}
        """Kind of constraint and anchor -> moving average of the rewards, from the first one seen."""

    def advantages(self, rewards: Tensor, budgets: Sequence[float], kind: str) -> Tensor:
        """(n,) what each reward is above what was to be expected; the moving averages then take the rewards in."""
        if self.options.baseline == "group":
            found = torch.zeros_like(rewards)
            for budget in set(budgets):
                same = torch.tensor([b == budget for b in budgets])
                group = rewards[same]
                found[same] = (group - group.mean()) / (group.std(correction=0) + DEVIATION)
            return found
        anchors = self.sampler.constraint(kind)
        keys = [kind if self.options.baseline == "shared" else f"{kind} {anchors.nearest(b)}" for b in budgets]
        values = rewards.tolist()
        for key, value in zip(keys, values, strict=True):
            self.averages.setdefault(key, value)
        found = rewards - torch.tensor([self.averages[key] for key in keys])
        for key, value in zip(keys, values, strict=True):
            self.averages[key] += (1 - self.options.decay) * (value - self.averages[key])
        return found

    def update(self, samples: Samples, rewards: Tensor, budgets: Sequence[float], kind: str, progress: float) -> None:
        """One step on theta.

        Args:
            samples: drawn with gradient.
            rewards: (n,), averaged over ranks.
            budgets: of the samples.
            kind: of constraint.
            progress: share of the sampler's training that is over; the entropy bonus has fallen by it.
        """
        bonus = self.options.entropy * max(0.0, 1.0 - progress) * samples.entropy.mean()
        gain = (self.advantages(rewards, budgets, kind) * samples.log_prob).mean() + bonus
        self.optimizer.zero_grad()
        (-gain).backward()
        torch.nn.utils.clip_grad_norm_(self.sampler.parameters(), self.options.clip)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the moving averages; the sampler's own is its `state_dict`."""
        return {"optimizer": self.optimizer.state_dict(), "averages": dict(self.averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would share its tensors
        self.averages = {str(key): float(value) for key, value in state["averages"].items()}


def _known(what: str, value: str, names: Sequence[str]) -> None:
    if value not in names:
        raise UserError(f"{what} {value!r} does not exist; known: {', '.join(names)}")
