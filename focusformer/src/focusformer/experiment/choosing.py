"""What each arm chooses for a budget, on held-out images, and how good that is on the test images."""

import random
from collections.abc import Callable
from statistics import mean

import torch
from torch.nn import functional as F

from focusformer.experiment.digit_images import Batch, Digits
from focusformer.experiment.settings import BUDGETS, COST, DRAWS, SINGLE_DRAWS, WINDOW, Found
from focusformer.method.architecture import SPACES, Architecture
from focusformer.method.cost import costs_of
from focusformer.method.evolution import EvolutionSettings, evolve
from focusformer.method.reachable import Reachable
from focusformer.method.search import Found as Searched
from focusformer.method.search import Policy, Tally, best_of, greedy, random_search
from focusformer.method.supernet import Supernet
from paperkit.data.resumable import seed_of

SPACE = SPACES["digits"]
SEARCHES, SAMPLES = 3, 4  # streams of random numbers


def reachable() -> Reachable:
    """The costs of the space; a budget tau allows 0.75 tau to tau."""
    return Reachable(SPACE, costs_of(SPACE.sizes, COST), COST, least=WINDOW)


def budgets(reach: Reachable) -> tuple[float, ...]:
    """Four, log-spaced between the 5 % and 95 % quantiles of the cost of all architectures.

    Quantiles of uniform choices would put the first where 6 architectures fit: too few for a search of 200.
    """
    return reach.anchors(BUDGETS, "log", (0.05, 0.95))


@torch.no_grad()
def tested(supernet: Supernet, architecture: Architecture, batch: Batch) -> tuple[float, float]:
    """Accuracy in % and mean cross entropy."""
    images, labels = batch
    logits = supernet.eval()(images, architecture)
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
            tally = self._tally(budget)
            random_search(SPACE, tally, SINGLE_DRAWS, self._python(number, 0))
            every = [
                self._found(one, score, 1, tally.draws / SINGLE_DRAWS, budget) for one, score in tally.scores.items()
            ]
            means = {
                field: mean(getattr(one, field) for one in every) for field in ("accuracy", "loss", "held_out", "cost")
            }
            found.append(Found(**means, evaluations=1, draws=every[0].draws, fits=all(one.fits for one in every)))
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
            return best_of(policy, self.budgets[number], tally, DRAWS - 1, generator)

        return self._searched(search)

    def _searched(self, search: Callable[[int, Tally], Searched]) -> tuple[list[Found], list[list[float]]]:
        """What a search finds for each budget, and the lowest held-out loss after each of its evaluations."""
        found, traces = [], []
        for number, budget in enumerate(self.budgets):
            tally = self._tally(budget)
            one = search(number, tally)
            found.append(self._found(one.architecture, one.score, one.evaluations, one.draws, budget))
            traces.append([-score for score in one.curve])
        return found, traces

    def _tally(self, budget: float) -> Tally:
        held_out = self.digits.held_out
        return Tally(lambda a: -tested(self.supernet, a, held_out)[1], lambda a: self._fits(a, budget))

    def _found(self, architecture: Architecture, score: float, evaluations: int, draws: float, budget: float) -> Found:
        accuracy, loss = tested(self.supernet, architecture, self.digits.test)
        return Found(
            accuracy,
            loss,
            -score,
            evaluations,
            draws,
            self.reach.cost(architecture),
            self._fits(architecture, budget),
            str(architecture),
        )

    def _fits(self, architecture: Architecture, budget: float) -> bool:
        return self.reach.window(budget).holds(self.reach.cost(architecture))

    def _python(self, budget: int, search: int) -> random.Random:
        return random.Random(seed_of(self.digits.seed, SEARCHES, self.number, budget, search))
