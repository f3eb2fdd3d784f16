"""Settings of the embedded experiment, and what one of its seeds returns. No torch in here.

Three supernets of one space are trained on digits: uniform sampling, FocusFormer's sampler, and uniform sampling with
the sampler's compute as further steps. Then architectures are chosen for each of some budgets, all on held-out images,
and tested with the weights that they inherit.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

UNIFORM, FOCUS, FURTHER = "uniform", "focus", "uniform, further steps"
"""The supernets, by how they are trained; names of their folders as well."""

U1, U30, RANDOM, EVOLUTION = "U1", "U30", "random", "E"
F1, F30 = "F1", "F30"
FURTHER1, FURTHER30 = "U1, further steps", "U30, further steps"
ARMS = {
    U1: "uniform supernet, a random architecture that fits (mean of 12)",
    U30: "uniform supernet, the best of 30 random ones",
    RANDOM: "uniform supernet, the best of as many random ones as E evaluates",
    EVOLUTION: "uniform supernet, AutoFormer's evolution",
    F1: "focused supernet, the sampler's greedy architecture",
    F30: "focused supernet, the best of 30 samples and the greedy one",
    FURTHER1: "uniform supernet with further steps, a random architecture that fits (mean of 12)",
    FURTHER30: "uniform supernet with further steps, the best of 30 random ones",
}
"""Arm -> what it is."""

TRAIN, HELD_OUT, TEST = 900, 300, 597  # images
COST = "macs"
"""The counter that budgets are told in."""
BUDGETS = 4
WINDOW = 0.75
"""An architecture fits a budget if it costs at most that, and at least this share of it."""
SINGLE_DRAWS, DRAWS = 12, 30
"""Architectures of U1, of U30 and F30."""
UPDATE_EVERY, GROUP, REWARD_IMAGES = 2, 4, 100
"""Steps between updates of the sampler; architectures of an update, and the images of its one reward batch."""
POLICY_CLIP = 4.0
"""Bound of the policy's logits: a choice keeps some chance."""
REWARD_START, SAMPLED_START = 0.1, 0.2
"""Shares of the steps after which the sampler is updated, and after which its samples are trained."""


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings of one run.

    Args:
        seeds: how many.
        first_seed: the first of them; the settings were found with seed 0, which is therefore left out.
        steps: of training, of each supernet.
        batch_size: images a step.
        lr: top of the one-cycle schedule.
        policy: the sampler's form: `lstm` (the reference design) or `table` (independent choices).
        policy_lr: its learning rate.
        entropy: weight of its entropy bonus, which falls to 0.
        evaluations: of random search and of evolution for each budget, a multiple of 4: random, then three generations.
        alone: sub-networks that are also trained alone, for the first seed, beside their inherited accuracy; 0: none.
        alone_steps: of training, of each of these.
        processes: seeds that run side by side; 0 is one a core.
    """

    seeds: int = 2
    first_seed: int = 1
    steps: int = 700
    batch_size: int = 64
    lr: float = 4e-3
    policy: Literal["lstm", "table"] = "lstm"
    policy_lr: float = 0.01
    entropy: float = 0.05
    evaluations: int = 200
    alone: int = 10
    alone_steps: int = 300
    processes: int = 0

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def updates(self) -> int:
        """Updates of the sampler."""
        return len(range(round(REWARD_START * self.steps), self.steps, UPDATE_EVERY))

    @property
    def further_steps(self) -> int:
        """Training steps that the rewards are worth: an image forward is a third of an image forward and backward."""
        return round(self.updates * GROUP * REWARD_IMAGES / (3 * self.batch_size))

    def steps_of(self, supernet: str) -> int:
        """Training steps of a supernet."""
        return self.steps + (self.further_steps if supernet == FURTHER else 0)

    def alone_of(self, seed: int) -> int:
        """Sub-networks that a seed trains alone."""
        return self.alone if seed == self.first_seed else 0

    @property
    def most_steps(self) -> int:
        """Training steps of a seed (for the progress bar)."""
        return sum(map(self.steps_of, (UNIFORM, FOCUS, FURTHER))) + self.alone * self.alone_steps


@dataclass(frozen=True)
class Found:
    """What an arm found for one budget.

    Attributes:
        accuracy, loss: on the test images, %, and the mean cross entropy; of U1 means over its draws.
        held_out: mean cross entropy on the held-out images, by which it was chosen.
        evaluations: passes over the held-out images that the choice took.
        draws: architectures that were drawn for it, those that do not fit included; of U1 for one that does, a mean.
        misses: those of the draws that do not fit.
        cost: of the architecture; of U1 a mean.
        architecture: its text; of U1 empty.
    """

    accuracy: float
    loss: float
    held_out: float
    evaluations: int
    draws: float
    misses: float
    cost: float
    architecture: str = ""


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        budgets: in multiply-accumulates, from the smallest.
        arms: arm -> what it found for each budget.
        traces: search (random, E) -> for each budget the lowest held-out loss after each evaluation; the same of F1 on
            its own supernet, with one entry.
        sampled: supernet -> cost of the architecture of every training step.
        sampler: what each update of the sampler told: `step`, `anchor`, `reward` (its mean), `entropy` (mean of a
            token, 1 for uniform), `feasible` (share), `distance` (mean of |C / tau - 1|).
        policy: what the trained sampler chooses for each budget, see `figures.policy`.
        entropies: of the trained sampler at each budget.
        alone: `inherited` and `alone` accuracy in %, and `cost`, of the sub-networks that were trained alone as well.
        times: seconds of each training, of the sampler and its rewards in it, and of each search.
    """

    seed: int
    budgets: list[float]
    arms: dict[str, list[Found]]
    traces: dict[str, list[list[float]]]
    sampled: dict[str, list[float]]
    sampler: dict[str, list[float]]
    policy: list[dict[str, Any]]
    entropies: list[float]
    alone: dict[str, list[float]] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
