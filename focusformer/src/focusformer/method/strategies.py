"""Which architectures a training step of the supernet trains: uniform, by resource, sandwich, best of k, FocusFormer.

All five stand behind one interface, `Strategy`, and one loop trains with any of them:

    for step, (images, labels) in enumerate(batches):
        passes = strategy.plan(step, evaluate)      # the same on every rank
        optimizer.zero_grad()
        training_losses(supernet, passes, images, labels, criterion, backward=torch.Tensor.backward)
        optimizer.step()
        update = strategy.learn(step, evaluate)     # FocusFormer's sampler; nothing in the others

`evaluate(architectures)` scores them on one held-out batch, the same for all that are scored in a step. Every draw
comes from a generator that (seed, step) seeds, never from a global one: the ranks agree without a word, and a resumed
run draws what the uninterrupted one drew.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from focusformer.method.architecture import Architecture, SearchSpace
from focusformer.method.reachable import Reachable
from focusformer.method.reinforce import Reinforce, RewardOptions, Scores, mean_over_ranks, reward
from focusformer.method.sampler import ArchitectureSampler
from paperkit.errors import UserError

Evaluate = Callable[[list[Architecture]], Scores]
REDRAWS = 8
"""Draws of an unmasked sampler until C <= `SLACK` tau; then a feasible architecture is drawn uniformly."""
SLACK = 1.05


class Pass(NamedTuple):
    """One forward and backward pass of a step.

    Attributes:
        architecture: what is trained.
        distil: its targets are the outputs of the step's first pass instead of the labels.
    """

    architecture: Architecture
    distil: bool = False


@dataclass(frozen=True)
class Update:
    """What one update of the sampler saw, a value for each of its samples.

    Attributes:
        step: of the training.
        kind: of constraint.
        anchors: the nearest anchor of each budget, by position.
        budgets, costs, rewards, entropies: tau, C, R, and the mean entropy of a token in units of log(choices).
        feasible: whether C lies in the budget's window.
    """

    step: int
    kind: str
    anchors: tuple[int, ...]
    budgets: tuple[float, ...]
    costs: tuple[float, ...]
    rewards: tuple[float, ...]
    entropies: tuple[float, ...]
    feasible: tuple[bool, ...]

    @property
    def means(self) -> dict[str, float]:
        """Means for a log: `reward`, `entropy`, `feasible` (share), `distance` (of |C / tau - 1|)."""
        n = len(self.budgets)
        distances = (abs(cost / budget - 1) for cost, budget in zip(self.costs, self.budgets, strict=True))
        sums = {"reward": sum(self.rewards), "entropy": sum(self.entropies), "feasible": sum(self.feasible)}
        return {name: total / n for name, total in {**sums, "distance": sum(distances)}.items()}


class Strategy(ABC):
    """What a step trains. A subclass says which passes; this class keeps the chance and the counts.

    Args:
        seed: of the run.

    Attributes:
        draws: architectures drawn so far, for training and for rewards.
        evaluations: architectures scored on held-out batches so far.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.draws, self.evaluations = seed, 0, 0

    @abstractmethod
    def plan(self, step: int, evaluate: Evaluate) -> list[Pass]:
        """The passes of a step, the same on every rank."""

    def learn(self, step: int, evaluate: Evaluate) -> Update | None:
        """What follows the step of the weights; nothing by default."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""
        return {"draws": self.draws, "evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.draws, self.evaluations = int(state["draws"]), int(state["evaluations"])

    def chance(self, step: int, purpose: str) -> random.Random:
        """The generator of a step, one for each purpose."""
        return random.Random(f"{self.seed},{step},{purpose}")

    def scores(self, architectures: list[Architecture], evaluate: Evaluate) -> Scores:
        """Their scores, averaged over ranks and counted."""
        self.evaluations += len(architectures)
        return mean_over_ranks(evaluate(architectures))


class Uniform(Strategy):
    """Independent uniform choices (AutoFormer, and the baseline of the paper): costs pile up in the middle.

    Args:
        space: the choices.
        seed: of the run.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(seed)
        self.space = space

    def plan(self, step: int, evaluate: Evaluate) -> list[Pass]:
        """One architecture."""
        self.draws += 1
        return [Pass(self.space.sample_uniform(self.chance(step, "train")))]


class ResourceUniform(Strategy):
    """First a budget, uniformly, then an architecture uniformly among those within its window.

    It shares FocusFormer's choice of the resource first and leaves out what its sampler learns: the two effects apart.

    Args:
        reachable: the space and its cost.
        anchors: budgets; drawn around them as FocusFormer does.
        seed: of the run.
    """

    def __init__(self, reachable: Reachable, anchors: Sequence[float], seed: int) -> None:
        super().__init__(seed)
        self.reachable, self.anchors = reachable, tuple(anchors)

    def plan(self, step: int, evaluate: Evaluate) -> list[Pass]:
        """One architecture."""
        self.draws += 1
        rng = self.chance(step, "train")
        budget = jittered(self.reachable, self.anchors, rng.randrange(len(self.anchors)), rng)
        return [Pass(self.reachable.sample_uniform(self.reachable.window(budget), rng))]


class Sandwich(Strategy):
    """The largest, the smallest and some random architectures; all but the largest learn from it (BigNAS).

    Args:
        space: the choices.
        seed: of the run.
        middle: random architectures of a step.
    """

    def __init__(self, space: SearchSpace, seed: int, middle: int = 2) -> None:
        super().__init__(seed)
        if middle < 0:
            raise UserError(f"sandwich of {middle} random architectures: need at least 0")
        self.space, self.middle = space, middle

    def plan(self, step: int, evaluate: Evaluate) -> list[Pass]:
        """The largest by the labels, then the others by its outputs."""
        rng = self.chance(step, "train")
        self.draws += self.middle
        others = [self.space.smallest(), *(self.space.sample_uniform(rng) for _ in range(self.middle))]
        return [Pass(self.space.largest()), *(Pass(architecture, distil=True) for architecture in others)]


class BestOfK(Strategy):
    """First a budget, then the best of k architectures there by one held-out batch (after AttentiveNAS's BestUp).

    Args:
        reachable: the space and its cost.
        anchors: budgets; drawn around them as FocusFormer does.
        seed: of the run.
        k: candidates.
    """

    def __init__(self, reachable: Reachable, anchors: Sequence[float], seed: int, k: int = 3) -> None:
        super().__init__(seed)
        if k < 1:
            raise UserError(f"best of {k}: need at least 1")
        self.reachable, self.anchors, self.k = reachable, tuple(anchors), k

    def plan(self, step: int, evaluate: Evaluate) -> list[Pass]:
        """The candidate of the lowest held-out loss."""
        rng = self.chance(step, "train")
        window = self.reachable.window(jittered(self.reachable, self.anchors, rng.randrange(len(self.anchors)), rng))
        candidates = [self.reachable.sample_uniform(window, rng) for _ in range(self.k)]
        self.draws += self.k
        return [Pass(candidates[int(self.scores(candidates, evaluate).loss.argmin())])]


@dataclass(frozen=True)
class FocusOptions:
    """When FocusFormer's sampler learns and when it is trained by.

    Args:
        steps: of the whole training.
        warmup: share of the steps before the sampler's first update (E_w).
        focused: share of the steps before its samples are trained, `warmup` if None.
        interval: steps between updates (I).
        samples: architectures of an update (M).
        constraints: budgets of an update; each has samples / constraints architectures. None is one for each sample,
            or a single one where the baseline is the group's.
        exploration: chance of a uniform draw in place of the sampler's, so that no weight starves (eps).
        jitter: draws budgets around the anchors, up to half way to the next; without it the anchors themselves.

    Raises:
        UserError: impossible values.
    """

    steps: int
    warmup: float = 0.1
    focused: float | None = None
    interval: int = 10
    samples: int = 8
    constraints: int | None = None
    exploration: float = 0.05
    jitter: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.interval, self.samples) < 1:
            raise UserError(f"steps {self.steps}, interval {self.interval}, samples {self.samples}: at least 1 each")
        focused = self.warmup if self.focused is None else self.focused
        if not (0 <= self.warmup <= 1 and 0 <= focused <= 1 and 0 <= self.exploration <= 1):
            raise UserError(
                f"warmup {self.warmup:g}, focused {focused:g} and exploration {self.exploration:g} are shares in [0, 1]"
            )
        if self.constraints is not None and (self.constraints < 1 or self.samples % self.constraints):
            raise UserError(f"{self.samples} samples are no multiple of {self.constraints} constraints")

    @property
    def first_update(self) -> int:
        """The first step that the sampler may be updated after."""
        return round(self.warmup * self.steps)

    @property
    def first_focused(self) -> int:
        """The first step whose architecture it draws."""
        return round((self.warmup if self.focused is None else self.focused) * self.steps)


class Focus(Strategy):
    """FocusFormer: a budget, then an architecture of the sampler, which learns every few steps (section 3.3).

    Args:
        sampler: on the CPU.
        reinforce: its update.
        seed: of the run.
        options: when.
        rewards: what.
    """

    def __init__(
        self,
        sampler: ArchitectureSampler,
        reinforce: Reinforce,
        seed: int,
        options: FocusOptions,
        rewards: RewardOptions | None = None,
    ) -> None:
        super().__init__(seed)
        self.sampler, self.reinforce, self.options = sampler, reinforce, options
        self.rewards = rewards or RewardOptions()
        if reinforce.options.baseline == "group" and options.samples // self._constraints < 2:
            raise UserError(
                f"a group's baseline needs several samples for a budget; got {options.samples} samples for "
                f"{self._constraints} constraints"
            )

    @property
    def _constraints(self) -> int:
        default = 1 if self.reinforce.options.baseline == "group" else self.options.samples
        return self.options.constraints or default

    def plan(self, step: int, evaluate: Evaluate) -> list[Pass]:
        """One architecture: of the sampler, or a uniform one in the warm-up and for exploration."""
        rng = self.chance(step, "train")
        if step < self.options.first_focused or rng.random() < self.options.exploration:
            self.draws += 1
            return [Pass(self.sampler.space.sample_uniform(rng))]
        kind = rng.choice(self.sampler.kinds)
        with torch.no_grad():
            return [Pass(self._draw(kind, self._budget(kind, rng), rng))]

    def learn(self, step: int, evaluate: Evaluate) -> Update | None:
        """An update of the sampler after every `interval` steps, once the warm-up is over."""
        start = self.options.first_update
        if step < start or (step - start) % self.options.interval:
            return None
        rng = self.chance(step, "reward")
        kind = rng.choice(self.sampler.kinds)
        reachable, constraint = self.sampler.reachable[kind], self.sampler.constraint(kind)
        each = self.options.samples // self._constraints
        budgets = [b for _ in range(self._constraints) for b in [self._budget(kind, rng)] * each]
        samples = self.sampler.sample(budgets, self.options.samples, _torch_generator(rng), kind)
        self.draws += self.options.samples
        costs = [float(reachable.cost(architecture)) for architecture in samples.architectures]
        rewards = reward(self.scores(samples.architectures, evaluate), costs, budgets, self.rewards)
        self.reinforce.update(samples, rewards, budgets, kind, (step - start) / max(1, self.options.steps - start))
        return Update(
            step,
            kind,
            tuple(map(constraint.nearest, budgets)),
            tuple(budgets),
            tuple(costs),
            tuple(rewards.tolist()),
            tuple(samples.entropy.tolist()),
            tuple(reachable.window(b).holds(cost) for b, cost in zip(budgets, costs, strict=True)),
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts, the sampler, its optimiser and baselines."""
        learned = {"sampler": self.sampler.state_dict(), "reinforce": self.reinforce.state_dict()}
        return {**super().state_dict(), **learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        super().load_state_dict(state)
        self.sampler.load_state_dict(state["sampler"])
        self.reinforce.load_state_dict(state["reinforce"])

    def _budget(self, kind: str, rng: random.Random) -> float:
        anchors = self.sampler.constraint(kind).anchors.tolist()
        at = rng.randrange(len(anchors))
        return jittered(self.sampler.reachable[kind], anchors, at, rng) if self.options.jitter else anchors[at]

    def _draw(self, kind: str, budget: float, rng: random.Random) -> Architecture:
        """One of the sampler's; without masks drawn again while it is too dear, then uniformly among the feasible.

        An infeasible fallback would be trained and rewarded until the policy locks onto it.
        """
        reachable, generator = self.sampler.reachable[kind], _torch_generator(rng)
        for _ in range(1 if self.sampler.masking else REDRAWS):
            self.draws += 1
            (architecture,) = self.sampler.sample(budget, 1, generator, kind).architectures
            if self.sampler.masking or reachable.cost(architecture) <= SLACK * budget:
                return architecture
        self.draws += 1
        return reachable.sample_uniform(reachable.window(budget), rng)


def jittered(reachable: Reachable, anchors: Sequence[float], at: int, rng: random.Random) -> float:
    """A budget in an anchor's cell, which reaches half way to its neighbours; the anchor where no architecture fits."""
    low = (anchors[at] + anchors[max(at - 1, 0)]) / 2
    high = (anchors[at] + anchors[min(at + 1, len(anchors) - 1)]) / 2
    budget = rng.uniform(low, high)
    return budget if reachable.feasible(budget) else anchors[at]


class Supernet(Protocol):
    """What a training step needs: images (B, ...) and an architecture to logits (B, classes)."""

    def __call__(self, images: Tensor, architecture: Architecture) -> Tensor: ...


def training_losses(
    supernet: Supernet,
    passes: Sequence[Pass],
    images: Tensor,
    targets: Any,
    criterion: Callable[[Tensor, Any], Tensor],
    backward: Callable[[Tensor], object],
) -> list[Tensor]:
    """Forward and backward of every pass of a step; gradients are the mean over its passes.

    Args:
        supernet: in training mode.
        passes: of the step.
        images, targets: the batch.
        criterion: of logits and targets.
        backward: takes a loss and adds its gradients, before the next pass needs the memory.

    Returns:
        The loss of each pass, detached; the first is always that of labels.
    """
    losses: list[Tensor] = []
    teacher: Tensor | None = None
    for one in passes:
        logits = supernet(images, one.architecture)
        if one.distil:
            if teacher is None:
                raise UserError("the first pass of a step has no outputs to learn from")
            loss = F.cross_entropy(logits.float(), teacher)
        else:
            loss = criterion(logits, targets)
        if teacher is None:
            teacher = logits.detach().float().softmax(1)
        backward(loss / len(passes))
        losses.append(loss.detach())
    return losses


def _torch_generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(63))
