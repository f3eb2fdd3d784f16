"""Four ways to search, by what they find and what they count; evolution against the released code's own trace."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from focusformer.method.architecture import SPACES, Architecture
from focusformer.method.evolution import EvolutionSettings, evolve
from focusformer.method.search import Tally, best_of, evaluations_to_reach, greedy, pareto, random_search
from paperkit.errors import UserError
from paperkit.testing.golden import read_golden

DIGITS = SPACES["digits"]
GOLDEN = Path(__file__).parents[1] / "golden" / "evolution_search.safetensors"


def width(architecture: Architecture) -> float:
    """A cost that orders the digits space."""
    return architecture.embed * sum(architecture.heads) * sum(architecture.ratios)


class Listed:
    """A sampler that gives what it is told, one list a call; the greedy architecture is the first of each."""

    def __init__(self, *rounds: Sequence[Architecture]) -> None:
        self.rounds, self.asked = list(rounds), list[float]()

    def greedy(self, tau: float) -> Architecture:
        self.asked.append(tau)
        return self.rounds[0][0]

    def sample(self, tau: float, n: int, generator: torch.Generator) -> tuple[list[Architecture], None, None]:
        return list(self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0])[:n], None, None


def some(count: int) -> list[Architecture]:
    """Architectures of different cost, by rising cost."""
    rng = random.Random(0)
    by_width = {width(a): a for a in (DIGITS.sample_uniform(rng) for _ in range(4 * count))}
    return [by_width[cost] for cost in sorted(by_width)][:count]


def test_best_of_drops_what_is_infeasible_or_known() -> None:
    listed = some(12)
    limit = width(listed[9])
    tally = Tally(score=width, feasible=lambda architecture: width(architecture) <= limit)
    found = best_of(Listed([*listed, *listed]), limit, tally, samples=24, generator=torch.Generator())
    assert found.architecture == listed[9] and found.score == limit
    assert (found.evaluations, found.draws) == (10, 25) and len(found.curve) == 10
    assert list(found.curve) == sorted(found.curve)


def test_best_of_asks_for_less_while_too_few_are_feasible() -> None:
    listed = some(12)
    limit = width(listed[5])
    tally = Tally(score=width, feasible=lambda architecture: width(architecture) <= limit)
    sampler = Listed(listed[6:], listed[6:], listed[:6])
    found = best_of(sampler, 100.0, tally, samples=6, generator=torch.Generator())
    assert sampler.asked == pytest.approx([100, 98, 96.04])
    assert (found.evaluations, found.draws, found.architecture) == (6, 21, listed[5])


def test_best_of_keeps_what_it_found_where_nothing_fits_the_lowered_constraint() -> None:
    class Narrow(Listed):
        def greedy(self, tau: float) -> Architecture:
            if tau < 100:
                raise UserError("no architecture lies there")
            return super().greedy(tau)

    listed = some(2)
    tally = Tally(score=width, feasible=lambda _: True)
    found = best_of(Narrow(listed), 100.0, tally, samples=6, generator=torch.Generator())
    assert (found.architecture, found.evaluations, found.draws) == (listed[1], 2, 3)
    with pytest.raises(UserError, match="no architecture lies there"):
        best_of(Narrow(listed), 99.0, tally, samples=6, generator=torch.Generator())


def test_no_samples_is_one_greedy_call() -> None:
    listed = some(3)
    for search in (greedy, lambda *given: best_of(*given, samples=0, generator=torch.Generator())):
        found = search(Listed(listed), 1.0, Tally(score=width, feasible=lambda _: True))
        assert (found.architecture, found.evaluations, found.draws) == (listed[0], 1, 1)
    with pytest.raises(UserError, match="none of 1 candidates keeps the constraint"):
        greedy(Listed(listed), 1.0, Tally(score=width, feasible=lambda _: False))
    with pytest.raises(UserError, match="samples -1"):
        best_of(Listed(listed), 1.0, Tally(score=width, feasible=lambda _: True), -1, torch.Generator())


def test_random_search_evaluates_what_it_was_given_and_counts_every_draw() -> None:
    limit = 300.0
    tally = Tally(score=lambda a: -width(a), feasible=lambda a: width(a) <= limit)
    found = random_search(DIGITS, tally, 30, random.Random(3))
    rng, feasible, draws = random.Random(3), set[Architecture](), 0
    while len(feasible) < 30:
        candidate, draws = DIGITS.sample_uniform(rng), draws + 1
        feasible |= {candidate} if width(candidate) <= limit else set()
    assert (found.evaluations, found.draws) == (30, draws) and draws > 40
    assert found.architecture == min(feasible, key=width)


def test_what_cannot_be_kept_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("search", "evolution"):
        monkeypatch.setattr(f"focusformer.method.{module}.MOST_DRAWS", 50)
    nothing = Tally(score=width, feasible=lambda _: False)
    with pytest.raises(UserError, match="0 of 5 architectures that keep the constraint were found"):
        random_search(DIGITS, nothing, 5, random.Random(0))
    with pytest.raises(UserError, match="0 of a population of 50 keep the constraint after 50 draws"):
        evolve(DIGITS, nothing, random.Random(0))
    with pytest.raises(UserError, match="parents 0: 1 at least"):
        EvolutionSettings(parents=0)
    with pytest.raises(UserError, match=r"layer_probability 1\.5: a probability"):
        EvolutionSettings(layer_probability=1.5)


def test_evolution_is_the_released_one() -> None:
    """Populations in order, lists, scores and the number of evaluations: every one exactly."""
    tensors, metadata = read_golden(GOLDEN)
    config = json.loads(metadata["config"])
    space, given = SPACES["ti"], config["args"]

    def millions(architecture: Architecture) -> float:
        """Without the cost module: patches 196, classes 1000, tables of 30 rows."""
        e, layers = architecture.embed, 0
        for heads, hidden in zip(architecture.heads, architecture.hidden, strict=True):
            q = 64 * heads
            layers += 3 * q * e + 3 * q + e * q + e + 4 * e + e * hidden + hidden + hidden * e + e + 4 * 30 * 64
        return (e * 768 + e + e * 198 + 2 * e + 1000 * e + 1000 + layers) / 10**6

    def accuracy(architecture: Architecture) -> float:
        depth = architecture.depth
        ratios = sum((i + 1) * ratio for i, ratio in enumerate(architecture.ratios)) / depth**2
        heads = sum(abs(h - 3.5 - i % 2) for i, h in enumerate(architecture.heads))
        return 80 - 20 / millions(architecture) + ratios - 0.1 / depth * heads

    low, high = config["min_param_limits_M"], config["param_limits_M"]
    tally = Tally(accuracy, lambda architecture: low <= millions(architecture) <= high)
    settings = EvolutionSettings(
        given["max_epochs"], given["population_num"], given["select_num"], given["mutation_num"],
        given["crossover_num"], given["m_prob"], given["s_prob"],
    )  # fmt: skip
    trace = evolve(space, tally, random.Random(config["seed"]), settings)

    def row(architecture: Architecture) -> list[float]:
        pad = [0.0] * (space.sizes.depth - architecture.depth)
        return [architecture.depth, architecture.embed, *architecture.heads, *pad, *architecture.ratios, *pad]

    for i, population in enumerate(trace.populations):
        assert [row(member) for member in population] == tensors[f"out.population.{i}"].tolist()
        assert trace.top_scores[i] == pytest.approx(tensors[f"out.top_accuracies.{i}"].tolist(), abs=1e-12)
    assert [row(member) for member in trace.last_population] == tensors["out.final_population"].tolist()
    for length in (5, 50):
        assert [row(member) for member in trace.top[length]] == tensors[f"out.top{length}"].tolist()
    assert 2 * trace.found.evaluations == int(tensors["out.evaluate_calls"])
    assert trace.found.draws > trace.found.evaluations == len(tally.scores)


def test_children_of_unequal_parents_are_architectures() -> None:
    """Where every pair differs in depth, the first parent comes back."""
    space = DIGITS
    short, long = Architecture(16, (1,), (1.0,)), Architecture(16, (1, 1), (1.0, 1.0))
    allowed = {short, long}
    tally = Tally(width, lambda architecture: architecture in allowed)
    settings = EvolutionSettings(generations=2, population=2, parents=2, mutations=0, crossovers=0)
    with pytest.raises(UserError, match="of a population of 2"):
        evolve(space, tally, random.Random(0), settings)
    assert set(tally.scores) == allowed


def test_pareto_and_evaluations_to_reach() -> None:
    assert pareto([3.0, 1.0, 2.0, 2.0, 4.0], [0.7, 0.5, 0.6, 0.65, 0.7]) == [1, 3, 0]
    assert evaluations_to_reach((0.1, 0.4, 0.4, 0.9), 0.4) == 2
    assert evaluations_to_reach((0.1, 0.4), 0.5) is None
