"""The architecture sampler pi_theta(architecture | tau): what FocusFormer adds to a supernet.

The paper's abstract promises a sampler conditioned on the resource constraint, trained along with the supernet, that is
the search once training is over. Its form is not public: what stands here is a reference design, and its
hyper-parameters are ours.

An architecture is a sequence of tokens: depth, width, then heads and MLP ratio of each layer. A policy gives the logits
of a token by the constraint's embedding and, if it is recurrent, by the tokens before. Choices that could no longer
meet the constraint are masked exactly (`focusformer.method.reachable`). Tokens of layers beyond the depth do not exist:
they count neither in the log-probability nor in the entropy nor in the history.

A sampler is small and lives on the CPU, where each rank draws the same from the same generator.

Shapes: n architectures, E embedding width (64), K anchors, C choices of a token.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from focusformer.method.architecture import Architecture
from focusformer.method.reachable import Reachable, Window
from paperkit.errors import UserError

WIDTH = 64
"""E, of the embeddings and of the LSTM's state."""
Kind = Literal["depth", "embed", "heads", "ratios"]
KINDS: tuple[Kind, ...] = ("depth", "embed", "heads", "ratios")
"""The kinds of tokens, each with its own output layer and embedding table."""


class Samples(NamedTuple):
    """What the sampler drew.

    Attributes:
        architectures: n of them.
        log_prob: (n,) of the whole sequence under the policy as sampled from, masks included.
        entropy: (n,) mean entropy of the architecture's tokens, in units of log(choices): 1 is uniform over all of
            them, and a token that the mask decides alone counts 0.
    """

    architectures: list[Architecture]
    log_prob: Tensor
    entropy: Tensor


class LSTMPolicy(nn.Module):
    """An LSTM over the tokens: it can learn that a deep network had better be narrow.

    Output layers begin at zero, so that the first policy is uniform over the choices.

    Args:
        choices: kind of token -> number of choices.
        layers: the space's largest depth; not looked at, each layer has the same output layers.
    """

    def __init__(self, choices: Mapping[Kind, int], layers: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        for name, parameter in self.cell.named_parameters():
            nn.init.uniform_(parameter, -0.1, 0.1) if "weight" in name else nn.init.zeros_(parameter)
        self.heads = nn.ModuleDict({kind: nn.Linear(WIDTH, count) for kind, count in choices.items()})
        self.tables = nn.ModuleDict({kind: nn.Embedding(count, WIDTH) for kind, count in choices.items()})
        for head in self.heads.values():
            _zero(cast(nn.Linear, head))

    def begin(self, constraint: Tensor) -> tuple[Tensor, Tensor]:
        """(n, E) constraints -> the state after the first input."""
        return cast(tuple[Tensor, Tensor], self.cell(constraint))

    def logits(self, state: tuple[Tensor, Tensor], kind: Kind, layer: int) -> Tensor:
        """(n, C) of the next token."""
        return cast(Tensor, self.heads[kind](state[0]))

    def follow(self, state: tuple[Tensor, Tensor], kind: Kind, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The state after a token of that kind was chosen (n,)."""
        return cast(tuple[Tensor, Tensor], self.cell(self.tables[kind](chosen), state))


class TablePolicy(nn.Module):
    """Independent choices, given the constraint: the small alternative, which no token's choice can inform of another.

    Args:
        choices: kind of token -> number of choices.
        layers: the space's largest depth.
    """

    def __init__(self, choices: Mapping[Kind, int], layers: int) -> None:
        super().__init__()
        self.choices = dict(choices)
        self.places: dict[tuple[Kind, int], int] = {}
        width = 0
        for kind, layer in [("depth", 0), ("embed", 0), *((k, i) for i in range(layers) for k in ("heads", "ratios"))]:
            self.places[cast(Kind, kind), layer] = width
            width += choices[cast(Kind, kind)]
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, width))
        _zero(cast(nn.Linear, self.mlp[-1]))

    def begin(self, constraint: Tensor) -> tuple[Tensor, Tensor]:
        """(n, E) constraints -> the logits of all tokens, which are the state."""
        logits = self.mlp(constraint)
        return logits, logits

    def logits(self, state: tuple[Tensor, Tensor], kind: Kind, layer: int) -> Tensor:
        """(n, C) of a token."""
        start = self.places[kind, layer]
        return state[0][:, start : start + self.choices[kind]]

    def follow(self, state: tuple[Tensor, Tensor], kind: Kind, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The state: nothing follows from a choice."""
        return state


class ConstraintEmbedding(nn.Module):
    """A row for each anchor; between two anchors the line between their rows, beyond the ends the end's row.

    Args:
        anchors: budgets in the unit of the cost, ascending.

    Raises:
        UserError: none, or not ascending.
    """

    anchors: Tensor

    def __init__(self, anchors: Sequence[float]) -> None:
        super().__init__()
        if not anchors or any(low >= high for low, high in pairwise(anchors)):
            raise UserError(f"anchors are ascending budgets; got {list(anchors)}")
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float64))
        self.rows = nn.Parameter(torch.randn(len(anchors), WIDTH) * 0.02)

    def forward(self, budget: float) -> Tensor:
        """(E,)"""
        place = float(np.interp(budget, self.anchors.numpy(), np.arange(len(self.anchors))))
        low = min(int(place), len(self.anchors) - 1)
        high = min(low + 1, len(self.anchors) - 1)
        return torch.lerp(self.rows[low], self.rows[high], place - low)

    def nearest(self, budget: float) -> int:
        """Which anchor lies nearest."""
        return int((self.anchors - budget).abs().argmin())


class ArchitectureSampler(nn.Module):
    """pi_theta(architecture | tau).

    Args:
        reachable: the space with its cost; or several, one for each kind of constraint by its name (FLOPs, parameters,
            a latency), the first of which is meant where no kind is named.
        anchors: budgets of each of them (the same order).
        policy: "lstm", or the factorised "table".
        temperature: divides the logits.
        tanh: bounds the logits to +- that constant by a tanh; 0 leaves them.
        clip: bounds the logits to +- that constant by a cut, which stops their growth there; 0 leaves them.
        masking: exact masks. Without them the sampler may draw what is infeasible, for the penalty of the reward to
            teach it otherwise.

    Raises:
        UserError: impossible options.
    """

    def __init__(
        self,
        reachable: Reachable | Sequence[Reachable],
        anchors: Sequence[float] | Sequence[Sequence[float]],
        policy: Literal["lstm", "table"] = "lstm",
        temperature: float = 1.0,
        tanh: float = 0.0,
        clip: float = 0.0,
        masking: bool = True,
    ) -> None:
        super().__init__()
        several = [reachable] if isinstance(reachable, Reachable) else list(reachable)
        each = [anchors] if isinstance(reachable, Reachable) else list(cast(Sequence[Sequence[float]], anchors))
        known: dict[str, type[LSTMPolicy | TablePolicy]] = {"lstm": LSTMPolicy, "table": TablePolicy}
        if policy not in known:
            raise UserError(f"policy {policy!r} does not exist; known: {', '.join(known)}")
        if not several or len(several) != len(each):
            raise UserError(f"{len(several)} kinds of cost and {len(each)} lists of anchors")
        if temperature <= 0 or min(tanh, clip) < 0:
            raise UserError(f"temperature {temperature:g} must be above 0, tanh {tanh:g} and clip {clip:g} at least 0")
        self.space = several[0].space
        self.reachable = {r.name: r for r in several}
        if len(self.reachable) < len(several) or any(r.space != self.space for r in several):
            raise UserError("the kinds of cost need names of their own and one space")
        self.temperature, self.tanh, self.clip, self.masking = temperature, tanh, clip, masking
        self.constraints = nn.ModuleDict(
            {r.name: ConstraintEmbedding(cast(Sequence[float], a)) for r, a in zip(several, each, strict=True)}
        )
        self.choices: dict[Kind, int] = {kind: len(getattr(self.space, kind)) for kind in KINDS}
        self.policy: LSTMPolicy | TablePolicy = known[policy](self.choices, max(self.space.depth))

    @property
    def kinds(self) -> list[str]:
        """The kinds of constraint it knows; the first is the default."""
        return list(self.reachable)

    def constraint(self, kind: str | None = None) -> ConstraintEmbedding:
        """The anchors and rows of a kind of constraint."""
        return cast(ConstraintEmbedding, self.constraints[self._kind(kind)])

    def sample(
        self, tau: float | Sequence[float], n: int, generator: torch.Generator, kind: str | None = None
    ) -> Samples:
        """Draws n architectures, for one budget or one for each of n budgets, in one batch.

        Args:
            tau: the budget, in the unit of its kind of cost.
            n: how many.
            generator: on the CPU; the only source of chance.
            kind: of constraint.

        Raises:
            UserError: no architecture meets a budget (the nearest possible one is named), or no such kind.
        """
        budgets = list(tau) if isinstance(tau, Sequence) else [tau] * n
        if len(budgets) != n:
            raise UserError(f"{len(budgets)} budgets for {n} architectures")
        walk = _Walk(self, budgets, self._kind(kind))
        for step in walk.steps():
            chances = step.log_chances.detach().exp()
            walk.take(step, torch.multinomial(chances, 1, generator=generator)[:, 0])
        return walk.samples()

    def log_prob(
        self, tau: float | Sequence[float], architectures: Sequence[Architecture], kind: str | None = None
    ) -> Samples:
        """The same for given architectures of the space: their log-probability and entropy, with gradient."""
        budgets = list(tau) if isinstance(tau, Sequence) else [tau] * len(architectures)
        walk = _Walk(self, budgets, self._kind(kind))
        for step in walk.steps():
            walk.take(step, torch.tensor([self._position(a, step.kind, step.layer) for a in architectures]))
        return walk.samples()

    @torch.no_grad()
    def greedy(self, tau: float, kind: str | None = None) -> Architecture:
        """The likeliest choice, token by token: the search in one call.

        Raises:
            UserError: as `sample`.
        """
        walk = _Walk(self, [tau], self._kind(kind))
        for step in walk.steps():
            walk.take(step, step.log_chances.argmax(1))
        return walk.samples().architectures[0]

    @torch.no_grad()
    def beam(self, tau: float, width: int, kind: str | None = None) -> list[Architecture]:
        """The `width` likeliest architectures that a beam search of that width meets, the likeliest first.

        With a width of the whole space this is the exact order.

        Raises:
            UserError: as `sample`, or a width below 1.
        """
        if width < 1:
            raise UserError(f"beam width {width} is below 1")
        walk = _Walk(self, [tau], self._kind(kind))
        for step in walk.steps():
            total = (walk.log_prob[:, None] + step.log_chances).flatten()
            best = total.topk(min(width, int((total > -math.inf).sum()))).indices
            count = step.log_chances.shape[1]
            walk.take(walk.select(step, best // count), best % count)
        found = walk.samples()
        order = found.log_prob.argsort(descending=True, stable=True)
        return [found.architectures[i] for i in order.tolist()]

    @torch.no_grad()
    def chances(self, tau: float, n: int, generator: torch.Generator, kind: str | None = None) -> dict[Kind, Tensor]:
        """How often each choice is taken for a budget, over n draws: what the sampler has learned.

        Returns:
            `depth` (|d|,), `embed` (|e|,), `heads` (layers, |h|) and `ratios` (layers, |r|): shares; of a layer among
            the draws that have it.
        """
        counts = {k: torch.zeros(max(self.space.depth), count) for k, count in self.choices.items()}
        for architecture in self.sample(tau, n, generator, kind).architectures:
            for k in KINDS:
                for layer in range(architecture.depth if k in ("heads", "ratios") else 1):
                    counts[k][layer, self._position(architecture, k, layer)] += 1
        shares = {k: count / count.sum(1, keepdim=True).clamp_min(1) for k, count in counts.items()}
        return {k: share if k in ("heads", "ratios") else share[0] for k, share in shares.items()}

    def shaped(self, logits: Tensor) -> Tensor:
        """The logits under temperature, tanh and cut."""
        logits = logits / self.temperature
        if self.tanh:
            logits = self.tanh * torch.tanh(logits)
        return logits.clamp(-self.clip, self.clip) if self.clip else logits

    def embed(self, budgets: Sequence[float], kind: str) -> Tensor:
        """(n, E): the policy's first input."""
        constraint, anchors = self.constraint(kind), self.constraint(kind).anchors
        for budget in sorted(set(budgets)):
            if not anchors[0] <= budget <= anchors[-1]:
                warnings.warn(
                    f"{kind} {budget:.4g} is outside the sampler's anchors, {anchors[0]:.4g} to {anchors[-1]:.4g}: "
                    "it answers as for the nearest of them",
                    stacklevel=2,
                )
        return torch.stack([constraint(budget) for budget in budgets])

    def _kind(self, kind: str | None) -> str:
        if kind is not None and kind not in self.reachable:
            raise UserError(f"the sampler knows no {kind!r}; it was trained for: {', '.join(self.reachable)}")
        return kind or next(iter(self.reachable))

    def _position(self, architecture: Architecture, kind: Kind, layer: int) -> int:
        """Of an architecture's choice among the space's; 0 for a layer it lacks."""
        if layer >= architecture.depth:
            return 0
        value = getattr(architecture, kind)
        try:
            return getattr(self.space, kind).index(value[layer] if kind in ("heads", "ratios") else value)
        except ValueError:
            raise UserError(
                f"{architecture} is none of the space's: {kind} {list(getattr(self.space, kind))}"
            ) from None


class _Step(NamedTuple):
    """A token of all n sequences: log-chances (n, C), -inf where masked. A sequence without that layer has choice 0."""

    kind: Kind
    layer: int
    log_chances: Tensor


class _Walk:
    """n sequences token by token: masks, state of the policy, and what has been chosen."""

    def __init__(self, sampler: ArchitectureSampler, budgets: Sequence[float], kind: str) -> None:
        self.sampler, self.space, self.reachable = sampler, sampler.space, sampler.reachable[kind]
        known = {budget: self.reachable.window(budget) for budget in set(budgets)}
        self.windows: list[Window] = [known[budget] for budget in budgets]
        self.state = sampler.policy.begin(sampler.embed(budgets, kind))
        n = len(budgets)
        self.chosen: list[tuple[int, ...]] = [()] * n
        self.spent = [0] * n
        self.behind: list[NDArray[np.float64]] = [np.empty(0)] * n
        """Feasible architectures behind each choice of heads and ratio of the layer at hand."""
        self.log_prob, self.entropy, self.tokens = torch.zeros(n), torch.zeros(n), torch.zeros(n)

    def steps(self) -> Iterator[_Step]:
        """Each token; its choice is told by `take` before the next."""
        yield self._step("depth", 0)
        yield self._step("embed", 0)
        layer = 0
        while layer < max(map(self._depth, self.chosen)):
            yield self._step("heads", layer)
            yield self._step("ratios", layer)
            layer += 1

    def take(self, step: _Step, chosen: Tensor) -> None:
        """One choice (n,) for each sequence."""
        count = step.log_chances.shape[1]
        exists = torch.tensor([self._exists(c, step) for c in self.chosen])
        finite = step.log_chances.masked_fill(step.log_chances == -math.inf, 0.0)
        self.log_prob = self.log_prob + step.log_chances.gather(1, chosen[:, None])[:, 0]
        if count > 1:  # a token without a choice has no entropy to speak of
            self.entropy = self.entropy - (step.log_chances.exp() * finite).sum(1) / math.log(count)
            self.tokens = self.tokens + exists
        for i, choice in enumerate(chosen.tolist()):
            if exists[i]:
                if step.kind == "ratios":
                    embed, heads = self.space.embed[self.chosen[i][1]], self.chosen[i][-1]
                    self.spent[i] = self.reachable.spend(self.spent[i], embed, step.layer, heads, choice)
                self.chosen[i] = (*self.chosen[i], choice)
        self.state = self.sampler.policy.follow(self.state, step.kind, chosen)

    def select(self, step: _Step, parents: Tensor) -> _Step:
        """Goes on with these of the sequences, with repetitions as a beam has them; the step for `take`."""
        for name in ("windows", "chosen", "spent", "behind"):
            setattr(self, name, [getattr(self, name)[i] for i in parents.tolist()])
        for name in ("log_prob", "entropy", "tokens"):
            setattr(self, name, getattr(self, name)[parents])
        self.state = (self.state[0][parents], self.state[1][parents])
        return step._replace(log_chances=step.log_chances[parents])

    def samples(self) -> Samples:
        """What was chosen."""
        space, architectures = self.space, []
        for _, embed, *layers in self.chosen:
            heads, ratios = (space.heads[h] for h in layers[::2]), (space.ratios[r] for r in layers[1::2])
            architectures.append(Architecture(space.embed[embed], tuple(heads), tuple(ratios)))
        return Samples(architectures, self.log_prob, self.entropy / self.tokens.clamp_min(1))

    def _step(self, kind: Kind, layer: int) -> _Step:
        allowed = torch.from_numpy(np.stack([self._allowed(i, kind, layer) for i in range(len(self.chosen))]))
        logits = self.sampler.shaped(self.sampler.policy.logits(self.state, kind, layer))
        possible = allowed | ~allowed.any(1, keepdim=True)  # behind an impossible choice, of `log_prob`, nothing is
        chances = logits.masked_fill(~possible, -math.inf).log_softmax(1)
        return _Step(kind, layer, chances.masked_fill(~allowed, -math.inf))

    def _allowed(self, i: int, kind: Kind, layer: int) -> NDArray[np.bool_]:
        """(C,) for sequence i."""
        count, chosen = self.sampler.choices[kind], self.chosen[i]
        if kind in ("heads", "ratios") and layer >= self._depth(chosen):
            return np.arange(count) == 0
        if not self.sampler.masking:
            return np.ones(count, bool)
        if kind == "depth":
            return self.reachable.depths(self.windows[i]) > 0
        if kind == "embed":
            return self.reachable.embeds(self.windows[i], self._depth(chosen)) > 0
        if kind == "heads":
            depth, embed = self._depth(chosen), self.space.embed[chosen[1]]
            self.behind[i] = self.reachable.layer(self.windows[i], depth, embed, layer, self.spent[i])
            return np.asarray(self.behind[i].any(1))
        return np.asarray(self.behind[i][chosen[-1]] > 0)

    def _depth(self, chosen: Sequence[int]) -> int:
        return self.space.depth[chosen[0]]

    def _exists(self, chosen: Sequence[int], step: _Step) -> bool:
        return step.kind in ("depth", "embed") or step.layer < self._depth(chosen)


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
