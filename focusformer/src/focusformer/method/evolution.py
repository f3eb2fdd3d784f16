"""AutoFormer's evolutionary search (Chen et al., ICCV 2021, section 3.3), number by number as in the released code.

Python's `random` is called in the same order, so a seed gives the same populations (reference kind
`evolution_search`). Two things differ: crossover never mixes parents of different depth (the released code, where 50
draws find no equal pair, makes a tuple that describes no network), and a limit that nothing keeps ends in an error
after `focusformer.method.search.MOST_DRAWS` candidates (there the loop never ends). Kept as it was: the last
population is bred and evaluated, and never ranked.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from focusformer.method.architecture import Architecture, SearchSpace
from focusformer.method.search import MOST_DRAWS, Found, Tally
from paperkit.errors import UserError

BATCH = 10
"""Candidates are drawn so many at a time; what is left of a batch when its operator ends is lost."""
LONG_LIST = 50
"""Length of the longer of the two running lists."""
PAIRS = 50
"""How often crossover draws its parents anew for two of equal depth."""


@dataclass(frozen=True)
class EvolutionSettings:
    """How evolution breeds.

    Args:
        generations: after the first population.
        population: legal architectures in each.
        parents: the best so far, of which mutation and crossover draw theirs.
        mutations, crossovers: children of each kind in a generation; 10 times as many are tried at most.
        layer_probability: of a layer's ratio and of its heads, in a mutation.
        size_probability: of the depth and of the width, in a mutation.
    """

    generations: int = 20
    population: int = 50
    parents: int = 10
    mutations: int = 25
    crossovers: int = 25
    layer_probability: float = 0.2
    size_probability: float = 0.4

    def __post_init__(self) -> None:
        for name in ("population", "parents"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: 1 at least")
        for name in ("generations", "mutations", "crossovers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)}: 0 at least")
        for name in ("layer_probability", "size_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: a probability, 0 to 1")


@dataclass
class EvolutionTrace:
    """What happened.

    Attributes:
        found: the best of all that were evaluated, and what it cost.
        populations: of each generation, in the order of their birth.
        last_population: bred after the last generation, not among the ranked.
        top: by length, the best of `populations`: of `parents` architectures and of 50.
        top_scores: of the longer list, after each generation.
    """

    found: Found
    populations: list[list[Architecture]] = field(default_factory=list)
    last_population: list[Architecture] = field(default_factory=list)
    top: dict[int, list[Architecture]] = field(default_factory=dict)
    top_scores: list[list[float]] = field(default_factory=list)


def evolve(
    space: SearchSpace, tally: Tally, generator: random.Random, settings: EvolutionSettings | None = None
) -> EvolutionTrace:
    """Random, then mutants and children of the best, generation by generation.

    Args:
        tally: what is legal (parameters within limits, in the released code), and the score.
        generator: a `random.Random` of the seed.

    Raises:
        UserError: no population of legal architectures was found.
    """
    settings = settings or EvolutionSettings()
    breeding = _Breeding(space, tally, generator, settings)
    lengths = (settings.parents, LONG_LIST)
    top: dict[int, list[Architecture]] = {length: [] for length in lengths}
    populations, top_scores = [], []
    population = breeding.filled([])
    for _ in range(settings.generations):
        populations.append(population)
        for length in lengths:
            merged = sorted(top[length] + population, key=tally.evaluate, reverse=True)
            top[length] = merged[:length]
        top_scores.append([tally.evaluate(member) for member in top[LONG_LIST]])
        parents = top[settings.parents]
        mutants = breeding.legal(lambda: breeding.mutant(parents), settings.mutations)  # noqa: B023  (called at once)
        children = breeding.legal(lambda: breeding.child(parents), settings.crossovers)  # noqa: B023
        population = breeding.filled(mutants + children)
    return EvolutionTrace(tally.best(), populations, population, top, top_scores)


class _Breeding:
    """The three operators."""

    def __init__(self, space: SearchSpace, tally: Tally, generator: random.Random, settings: EvolutionSettings) -> None:
        self.space, self.tally, self.random, self.settings = space, tally, generator, settings

    def filled(self, population: list[Architecture]) -> list[Architecture]:
        """The population made up to its size with random architectures."""
        missing = self.settings.population - len(population)
        if missing <= 0:
            return population
        found = self._legal(lambda: self.space.sample_uniform(self.random), missing, MOST_DRAWS)
        if len(found) < missing:
            raise UserError(
                f"{self.settings.population - missing + len(found)} of a population of {self.settings.population} "
                f"keep the constraint after {MOST_DRAWS} draws; allow more cost, or make the population smaller"
            )
        return population + found

    def legal(self, draw: Callable[[], Architecture], count: int) -> list[Architecture]:
        """`count` new architectures that keep the constraint, or fewer: 10 times as many are tried."""
        return self._legal(draw, count, 10 * count)

    def _legal(self, draw: Callable[[], Architecture], count: int, tries: int) -> list[Architecture]:
        """Evaluated as they are found."""
        found: list[Architecture] = []
        candidates = _in_batches(draw)
        while len(found) < count and tries > 0:
            tries -= 1
            candidate = next(candidates)
            if self.tally.draw(candidate):
                self.tally.evaluate(candidate)
                found.append(candidate)
        return found

    def mutant(self, parents: list[Architecture]) -> Architecture:
        """A parent with another depth, other layers, another width, each by its probability."""
        pick, chance = self.random.choice, self.random.random
        parent, by_layer, by_size = pick(parents), self.settings.layer_probability, self.settings.size_probability
        ratios, heads, embed = list(parent.ratios), list(parent.heads), parent.embed
        if chance() < by_size:
            depth = pick(self.space.depth)
            ratios = ratios[:depth] + [pick(self.space.ratios) for _ in range(depth - len(ratios))]
            heads = heads[:depth] + [pick(self.space.heads) for _ in range(depth - len(heads))]
        ratios = [pick(self.space.ratios) if chance() < by_layer else ratio for ratio in ratios]
        heads = [pick(self.space.heads) if chance() < by_layer else number for number in heads]
        if chance() < by_size:
            embed = pick(self.space.embed)
        return Architecture(embed, tuple(heads), tuple(ratios))

    def child(self, parents: list[Architecture]) -> Architecture:
        """Every size from one of two parents of equal depth; the first of them if none are found."""
        pick = self.random.choice
        one, other = pick(parents), pick(parents)
        for _ in range(PAIRS):
            if one.depth == other.depth:
                break
            one, other = pick(parents), pick(parents)
        if one.depth != other.depth:
            return one
        pick((one.depth, other.depth))  # the released code draws for the depth, too
        ratios = tuple(pick(pair) for pair in zip(one.ratios, other.ratios, strict=True))
        heads = tuple(pick(pair) for pair in zip(one.heads, other.heads, strict=True))
        return Architecture(pick((one.embed, other.embed)), heads, ratios)


def _in_batches(draw: Callable[[], Architecture]) -> Iterator[Architecture]:
    while True:
        yield from [draw() for _ in range(BATCH)]
