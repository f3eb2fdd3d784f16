"""A trained run searched for a budget: its supernet, its sampler, and the held-out images that it never trained on."""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from focusformer.method.architecture import Architecture, SearchSpace
from focusformer.method.cost import LatencyTable
from focusformer.method.evolution import EvolutionSettings, evolve
from focusformer.method.reachable import Reachable
from focusformer.method.sampler import ArchitectureSampler
from focusformer.method.search import Found, Policy, Tally, best_of, greedy, random_search
from focusformer.method.supernet import Supernet
from focusformer.models.folders import load_supernet
from focusformer.models.saved_sampler import SavedSampler, constraint
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder

Method = Literal["greedy", "best", "random", "evolution"]
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
MILLISECONDS = {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3}


@dataclass
class SearchedRun:
    """What a search needs of a run.

    Attributes:
        supernet: in eval mode. space: its choices.
        sampler: the run's; None if it was trained without.
        held_out, test: batches of images and labels, anew at each call.
        score: which of accuracy and loss chooses.
        seen: accuracy in % and loss on the held-out images of what a search evaluated.
    """

    supernet: Supernet
    space: SearchSpace
    sampler: ArchitectureSampler | None
    held_out: Batches
    test: Batches
    score: Literal["accuracy", "loss"]
    seen: dict[Architecture, tuple[float, float]] = field(default_factory=dict)

    @torch.no_grad()
    def measured(self, architecture: Architecture, batches: Batches) -> tuple[float, float]:
        """Top-1 accuracy in % and mean cross entropy."""
        on = next(self.supernet.parameters()).device
        right, loss, images = 0, 0.0, 0
        for batch, labels in batches():
            logits = self.supernet(batch.to(on), architecture).float().cpu()
            right += int((logits.argmax(1) == labels).sum())
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            images += len(labels)
        return 100 * right / images, loss / images

    def quality(self, architecture: Architecture) -> float:
        """What a search maximises: held-out accuracy, or minus the loss."""
        accuracy, loss = self.seen[architecture] = self.measured(architecture, self.held_out)
        return accuracy if self.score == "accuracy" else -loss

    def policy(self) -> ArchitectureSampler:
        """The sampler.

        Raises:
            UserError: there is none.
        """
        if self.sampler is None:
            raise UserError("the run was trained without a sampler: take --method random or evolution")
        return self.sampler

    def reachable(self, kind: str, table: LatencyTable | None, least: float | None) -> Reachable:
        """The space under a kind of constraint; the sampler's own where it knows the kind and nothing else is asked."""
        known = {} if self.sampler is None else self.sampler.reachable
        if kind in known and table is None and least is None:
            return known[kind]
        return constraint(self.space, kind, 0.9 if least is None else least, table)


class _OfKind:
    """A sampler asked for one kind of constraint."""

    def __init__(self, sampler: ArchitectureSampler, kind: str) -> None:
        self.sampler, self.kind = sampler, kind

    def sample(self, tau: float, n: int, generator: torch.Generator) -> Any:
        """As the sampler's; budgets that nothing fits are left out."""
        if not self.sampler.reachable[self.kind].feasible(tau):
            return [[]]
        return self.sampler.sample(tau, n, generator, self.kind)

    def greedy(self, tau: float) -> Architecture:
        """As the sampler's."""
        return self.sampler.greedy(tau, self.kind)


def budget_of(text: str, kind: str) -> float:
    """`1.4G`, `6M`, `350k`, `20ms`, `0.02s`, or a plain number, in the unit of the kind (latency: ms).

    Raises:
        UserError: another form, or not above 0.
    """
    units = MILLISECONDS if kind == "latency" else FACTORS
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    unit = match[2] if match else None
    try:
        value = float(match[1]) * units[unit] if match and unit in units else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        example = "20ms" if kind == "latency" else "1.4G, 6M or 350k"
        raise UserError(f"--{kind} {text!r} is no budget: a number above 0, such as {example}")
    return value


def search(
    run: SearchedRun,
    kind: str,
    budget: float,
    reach: Reachable,
    method: Method,
    *,
    samples: int,
    evaluations: int,
    seed: int,
) -> Found:
    """One search of a run.

    Args:
        kind: of constraint. reach: the space under it.
        samples: draws of `best`. evaluations: of `random`, and roughly of `evolution` (populations of 50); no more than
            there are architectures that fit.

    Raises:
        UserError: a budget that nothing meets (names the nearest), no sampler, or one that does not know the kind.
    """
    window = reach.window(budget)
    evaluations = min(evaluations, reach.count(window))
    tally = Tally(run.quality, lambda architecture: window.holds(reach.cost(architecture)))
    if method == "random":
        return random_search(run.space, tally, evaluations, random.Random(seed))
    if method == "evolution":
        population = min(50, evaluations)
        settings = EvolutionSettings(generations=max(0, evaluations // population - 1), population=population)
        return evolve(run.space, tally, random.Random(seed), settings).found
    sampler = run.policy()
    if kind not in sampler.reachable:
        known = ", ".join(f"--{name}" for name in sampler.reachable)
        raise UserError(f"the run's sampler knows no {kind}: ask by {known}, or take --method random or evolution")
    policy: Policy = _OfKind(sampler, kind)
    if method == "greedy":
        return greedy(policy, budget, tally)
    return best_of(policy, budget, tally, samples, torch.Generator().manual_seed(seed))


def open_run(
    run: RunFolder, ckpt: str | None, data_root: str | None, images: int | None, seed: int | None
) -> SearchedRun:
    """The supernet and sampler of a run of the embedded experiment, or of real images.

    Args:
        ckpt: as it was named; RUN/best takes the best supernet and its sampler.
        data_root: folder of the images in place of the run's.
        images: at most so many held-out images.
        seed: of the embedded experiment, whose supernet is meant.

    Raises:
        UserError: an unfinished run, or one of an engine without a supernet.
    """
    config = run.read_config()
    engine = config.get("engine", "digits")
    if engine == "digits":
        return _digits(run, config, seed)
    if engine != "images":
        raise UserError(f"{run.path} is a run of engine {engine}, which trains no supernet")
    best = ckpt is not None and Path(ckpt).name == "best"
    network = load_supernet(run.path / ("best" if best else "model"))
    folder = run.path / ("best_sampler" if best else "sampler")
    sampler = SavedSampler.from_pretrained(folder) if folder.is_dir() else None
    from paperkit.data.images import ImageData

    data = ImageData(**{**config["data"], **({} if data_root is None else {"root": data_root})})
    data.use_head(network.sizes.num_classes)
    data.setup()

    def held_out() -> Iterable[tuple[Tensor, Tensor]]:
        left = images
        for batch, labels in data.val_dataloader():
            yield batch[:left], labels[:left]
            left = None if left is None else left - len(labels)
            if left is not None and left <= 0:
                return

    return SearchedRun(network.eval(), network.space, sampler, held_out, data.test_dataloader, "accuracy")


def _digits(run: RunFolder, config: dict[str, Any], seed: int | None) -> SearchedRun:
    from focusformer.experiment.digit_images import split_digits
    from focusformer.experiment.run import seed_folder
    from focusformer.experiment.settings import FOCUS, ExperimentConfig
    from focusformer.experiment.supernets import MODEL, SAMPLER

    names = ExperimentConfig.__dataclass_fields__
    settings = ExperimentConfig(**{name: value for name, value in config.items() if name in names})
    chosen = settings.first_seed if seed is None else seed
    if chosen not in settings.seed_list:
        raise UserError(f"{run.path} has the seeds {', '.join(map(str, settings.seed_list))}, not {chosen}")
    folder, digits = seed_folder(run.path, chosen) / FOCUS, split_digits(chosen)
    supernet, sampler = load_supernet(folder / MODEL), SavedSampler.from_pretrained(folder / SAMPLER)
    return SearchedRun(supernet, supernet.space, sampler, lambda: [digits.held_out], lambda: [digits.test], "loss")
