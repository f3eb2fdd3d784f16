"""Searching a trained supernet for an architecture: four ways, one interface, and what each one cost.

One greedy call of the sampler, the best of N samples, plain random search, and AutoFormer's
evolution (`focusformer.method.evolution`). Each is given a `Tally`, which scores an architecture once and counts:

    evaluation  a call of the score, that is a pass over held-out data
    draw        a candidate that was proposed, feasible or not, new or not

    tally = Tally(score=lambda architecture: -held_out_loss(architecture), feasible=lambda a: cost(a) <= tau)
    found = best_of(sampler, tau, tally, samples=50, generator=generator)
    found.architecture, found.score, found.evaluations, found.draws
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from focusformer.method.architecture import Architecture, SearchSpace
from paperkit.errors import UserError

MOST_DRAWS = 100_000
"""Draws of one search for candidates after which nothing feasible is believed to be there."""
FEWEST = 5
"""Candidates that a search by the sampler wants before it evaluates them."""
LOWER = 0.98
"""By how much it lowers the constraint while it has fewer,"""
ROUNDS = 20
"""and how often."""


class Policy(Protocol):
    """What a search needs of a sampler pi(architecture | tau)."""

    def sample(self, tau: float, n: int, generator: torch.Generator) -> Any:
        """n architectures first; what else a sampler gives with them is not looked at."""

    def greedy(self, tau: float) -> Architecture:
        """The likeliest choice token by token."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        architecture, score: the best one.
        evaluations, draws: what it cost.
        curve: the best score after each evaluation, first to last.
    """

    architecture: Architecture
    score: float
    evaluations: int
    draws: int
    curve: tuple[float, ...]


class Tally:
    """Scores architectures, each one once, and counts evaluations and draws.

    Args:
        score: of an architecture on held-out data, higher is better; never of training data or the test set.
        feasible: whether an architecture keeps the constraint.

    Attributes:
        scores: of every architecture that was evaluated, in that order.
        draws: candidates so far.
    """

    def __init__(self, score: Callable[[Architecture], float], feasible: Callable[[Architecture], bool]) -> None:
        self._score, self.feasible = score, feasible
        self.scores: dict[Architecture, float] = {}
        self.draws = 0

    @property
    def evaluations(self) -> int:
        """Calls of the score so far."""
        return len(self.scores)

    def draw(self, candidate: Architecture) -> bool:
        """Counts a candidate; whether it is feasible and was not evaluated before."""
        self.draws += 1
        return candidate not in self.scores and self.feasible(candidate)

    def evaluate(self, candidate: Architecture) -> float:
        """Its score, measured at the first time of asking."""
        if candidate not in self.scores:
            self.scores[candidate] = self._score(candidate)
        return self.scores[candidate]

    def best(self) -> Found:
        """The best architecture so far; of equal ones the first.

        Raises:
            UserError: nothing was evaluated, since nothing feasible was found.
        """
        if not self.scores:
            raise UserError(f"none of {self.draws} candidates keeps the constraint; allow more cost")
        curve: list[float] = []
        for score in self.scores.values():
            curve.append(max(score, curve[-1]) if curve else score)
        best = max(self.scores, key=self.scores.__getitem__)
        return Found(best, self.scores[best], self.evaluations, self.draws, tuple(curve))


def greedy(policy: Policy, tau: float, tally: Tally) -> Found:
    """One call of the sampler: its likeliest architecture, evaluated once to tell how good it is.

    Raises:
        UserError: that architecture does not keep the constraint.
    """
    candidate = policy.greedy(tau)
    if tally.draw(candidate):
        tally.evaluate(candidate)
    return tally.best()


def best_of(policy: Policy, tau: float, tally: Tally, samples: int, generator: torch.Generator) -> Found:
    """The best of the greedy architecture and `samples` draws; infeasible ones and repetitions are dropped.

    While fewer than 5 are left the sampler is asked again with tau lowered by 2 %: it may have learned to sit on the
    limit. Feasibility stays that of the tally. `samples=0` is one greedy call.

    Raises:
        UserError: a negative number of samples; nothing feasible.
    """
    if samples < 0:
        raise UserError(f"samples {samples}: 0 (the greedy architecture alone) at least")
    if samples == 0:
        return greedy(policy, tau, tally)
    kept: dict[Architecture, None] = {}
    for round_ in range(ROUNDS):
        asked = tau * LOWER**round_
        try:
            drawn = [policy.greedy(asked), *policy.sample(asked, samples, generator)[0]]
        except UserError:  # nothing fits the lowered constraint: what was found for the others stays
            if round_ == 0:
                raise
            break
        for candidate in drawn:
            if tally.draw(candidate):
                kept[candidate] = None
        if len(kept) >= min(FEWEST, samples):
            break
    for candidate in kept:
        tally.evaluate(candidate)
    return tally.best()


def random_search(space: SearchSpace, tally: Tally, evaluations: int, generator: random.Random) -> Found:
    """The best of `evaluations` feasible architectures that are drawn uniformly: the baseline of any search.

    Raises:
        UserError: fewer than that were found in `MOST_DRAWS` draws for each.
    """
    for count in range(evaluations):
        for _ in range(MOST_DRAWS):
            candidate = space.sample_uniform(generator)
            if tally.draw(candidate):
                tally.evaluate(candidate)
                break
        else:
            raise UserError(
                f"{count} of {evaluations} architectures that keep the constraint were found, and no further one in "
                f"{MOST_DRAWS} draws; allow more cost, or ask for fewer"
            )
    return tally.best()


def pareto(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of what is not dominated, by rising cost: nothing as cheap is better, nothing as good is cheaper."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i]))
    front: list[int] = []
    for i in order:
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


def evaluations_to_reach(curve: Sequence[float], score: float) -> int | None:
    """How many evaluations a search took until it was as good as `score`; None if it never was."""
    return next((count for count, best in enumerate(curve, 1) if best >= score), None)
