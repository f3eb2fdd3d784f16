"""What each arm chooses for a budget, on held-out images, and how good that is on the test images."""

import random
from collections.abc import Callable
from statistics import mean

import torch
from torch import nn
from torch.nn import functional as F

from focusformer.experiment.digit_images import Batch, Digits
from focusformer.experiment.settings import BUDGETS, COST, DRAWS, SINGLE_DRAWS, WINDOW, Found
from focusformer.method.architecture import SPACES, Architecture
from focusformer.method.evolution import EvolutionSettings, evolve
from focusformer.method.reachable import Reachable
from focusformer.method.search import Found as Searched
from focusformer.method.search import Policy, Tally, greedy, random_search
from focusformer.method.supernet import Supernet
from focusformer.models.saved_sampler import constraint
from paperkit.data.seeding import seed_of

SPACE = SPACES["digits"]
SEARCHES, SAMPLES = 3, 4  # streams of random numbers


def reachable() -> Reachable:
    """The costs of the space; a budget tau allows 0.75 tau to tau."""
    return constraint(SPACE, COST, WINDOW)


def budgets(reach: Reachable) -> tuple[float, ...]:
    """Four, log-spaced between the 5 % and 95 % quantiles of the cost of all architectures.

    Quantiles of uniform choices would put the first where 6 architectures fit: too few for a search of 200.
    """
    return reach.anchors(BUDGETS, "log", (0.05, 0.95))


@torch.no_grad()
def accuracy_and_loss(network: nn.Module, batch: Batch, *architecture: Architecture) -> tuple[float, float]:
    """Accuracy in % and mean cross entropy of a network, or of an architecture of a supernet."""
    images, labels = batch
    logits = network.eval()(images, *architecture)
    return 100 * (logits.argmax(-1) == labels).double().mean().item(), F.cross_entropy(logits, labels).item()


class Chooser:
    """Searches of one supernet for each budget, and their results.

    Args:
        supernet: trained, in eval mode. digits: of its seed. number: tells the searches of a seed apart.
    """

    def __init__(self, supernet: Supernet, digits: Digits, reach: Reachable, number: int) -> None:
        self.supernet, self.digits, self.reach, self.number = supernet.eval(), digits, reach, number
        self.budgets = budgets(reach)

    def single(self) -> list[Found]:
        """A random architecture that fits: the mean of 12."""
        found = []
        for number, budget in enumerate(self.budgets):
            tally, misses = self._tally(budget)
            random_search(SPACE, tally, SINGLE_DRAWS, self._python(number, 0))
            results = [
                (*accuracy_and_loss(self.supernet, self.digits.test, one), -score)
                for one, score in tally.scores.items()
            ]
            accuracy, loss, held_out = (mean(values) for values in zip(*results, strict=True))
            draws, cost = tally.draws / SINGLE_DRAWS, mean(map(self.reach.cost, tally.scores))
            found.append(Found(accuracy, loss, held_out, 1, draws, len(misses) / SINGLE_DRAWS, cost))
        return found

    def best_random(self, evaluations: int) -> tuple[list[Found], list[list[float]]]:
        """The best of some random architectures that fit."""
        return self._searched(
            lambda number, tally: random_search(SPACE, tally, evaluations, self._python(number, evaluations))
        )

    def evolution(self, evaluations: int) -> tuple[list[Found], list[list[float]]]:
        """AutoFormer's evolution: a quarter of the evaluations at random, then three generations."""
        size = evaluations // 4
        settings = EvolutionSettings(3, size, mutations=size // 2, crossovers=size // 2)
        return self._searched(lambda number, tally: evolve(SPACE, tally, self._python(number, 1), settings).found)

    def one_call(self, policy: Policy) -> tuple[list[Found], list[list[float]]]:
        """The sampler's greedy architecture."""
        return self._searched(lambda number, tally: greedy(policy, self.budgets[number], tally))

    def best_sample(self, policy: Policy) -> tuple[list[Found], list[list[float]]]:
        """The best of the greedy architecture and 29 further samples."""

        def search(number: int, tally: Tally) -> Searched:
            generator = torch.Generator().manual_seed(seed_of(self.digits.seed, SAMPLES, number))
            drawn = policy.sample(self.budgets[number], DRAWS - 1, generator)[0]
            for candidate in (policy.greedy(self.budgets[number]), *drawn):
                if tally.draw(candidate):
                    tally.evaluate(candidate)
            return tally.best()

        return self._searched(search)

    def _searched(self, search: Callable[[int, Tally], Searched]) -> tuple[list[Found], list[list[float]]]:
        """What a search finds for each budget, and the lowest held-out loss after each of its evaluations."""
        found, traces = [], []
        for number, budget in enumerate(self.budgets):
            tally, misses = self._tally(budget)
            one = search(number, tally)
            accuracy, loss = accuracy_and_loss(self.supernet, self.digits.test, one.architecture)
            cost, text = self.reach.cost(one.architecture), str(one.architecture)
            found.append(Found(accuracy, loss, -one.score, one.evaluations, one.draws, len(misses), cost, text))
            traces.append([-score for score in one.curve])
        return found, traces

    def _tally(self, budget: float) -> tuple[Tally, list[Architecture]]:
        """Of a budget, by held-out loss; and a list that draws which do not fit are put into."""
        window, misses = self.reach.window(budget), []

        def fits(architecture: Architecture) -> bool:
            held = window.holds(self.reach.cost(architecture))
            if not held:
                misses.append(architecture)
            return held

        return Tally(lambda one: -accuracy_and_loss(self.supernet, self.digits.held_out, one)[1], fits), misses

    def _python(self, budget: int, search: int) -> random.Random:
        return random.Random(seed_of(self.digits.seed, SEARCHES, self.number, budget, search))
