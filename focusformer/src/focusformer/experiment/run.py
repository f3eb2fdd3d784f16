"""The embedded experiment for one seed, from top to bottom: supernets, sub-networks alone, and what each arm finds."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from focusformer.experiment import settings as names
from focusformer.experiment.choosing import SAMPLES, SPACE, Chooser, accuracy_and_loss, reachable
from focusformer.experiment.digit_images import Digits, split_digits
from focusformer.experiment.settings import DRAWS, FOCUS, FURTHER, UNIFORM, ExperimentConfig, Found, SeedResult
from focusformer.experiment.supernets import (
    MODEL,
    SAMPLER,
    Advance,
    new_supernet,
    one_cycle,
    read_log,
    train_supernet,
)
from focusformer.method.architecture import Architecture
from focusformer.method.reachable import Reachable
from focusformer.method.sampler import ArchitectureSampler
from focusformer.models.extraction import extract_subnet
from focusformer.models.folders import SavedSupernet
from focusformer.models.saved_sampler import SavedSampler
from focusformer.models.static_vit import StaticViT
from paperkit.data.seeding import seed_of
from paperkit.training.stages import train_stage

ALONE = 6  # stream of random numbers
POLICY_DRAWS = 200
"""Samples of the trained sampler for its shares and its entropy."""


def run_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Train every supernet of one seed in the run folder `run`, and sub-networks alone, then measure."""
    digits, reach, folder = split_digits(seed), reachable(), seed_folder(Path(run), seed)
    for name in (UNIFORM, FOCUS, FURTHER):
        train_supernet(name, digits, reach, folder / name, config, advance)
    for number in range(config.alone_of(seed)):
        train_alone(number, digits, folder, config, advance)
    advance((config.alone - config.alone_of(seed)) * config.alone_steps)
    return measure_seed(seed, Path(run), config)


def alone_architecture(seed: int, number: int) -> Architecture:
    """A random architecture that is trained alone."""
    return SPACE.sample_uniform(random.Random(seed_of(seed, ALONE, number)))


def train_alone(number: int, digits: Digits, folder: Path, config: ExperimentConfig, advance: Advance) -> StaticViT:
    """One sub-network from new weights, or read again if it is done."""
    network = extract_subnet(new_supernet(digits.seed), alone_architecture(digits.seed, number))
    train_stage(
        network,
        folder / "alone" / str(number),
        torch.optim.AdamW(network.parameters(), config.lr, fused=True),
        one_cycle(config.lr, config.alone_steps).__getitem__,
        lambda step: digits.training_batch(step, config.batch_size),
        config.alone_steps,
        advance=advance,
    )
    return network


def measure_seed(seed: int, run: Path, config: ExperimentConfig) -> SeedResult:
    """Every number of a finished seed: the searches are done anew on its saved supernets."""
    digits, reach, folder = split_digits(seed), reachable(), seed_folder(run, seed)
    logs = {name: read_log(folder / name) for name in (UNIFORM, FOCUS, FURTHER)}
    choosers = {
        name: Chooser(SavedSupernet.from_pretrained(folder / name / MODEL), digits, reach, i)
        for i, name in enumerate((UNIFORM, FOCUS, FURTHER))
    }
    sampler = SavedSampler.from_pretrained(folder / FOCUS / SAMPLER)
    uniform, focus, further = choosers.values()
    searches: dict[str, Callable[[], tuple[list[Found], list[list[float]]]]] = {
        names.U1: lambda: (uniform.single(), []),
        names.U30: lambda: uniform.best_random(DRAWS),
        names.RANDOM: lambda: uniform.best_random(config.evaluations),
        names.EVOLUTION: lambda: uniform.evolution(config.evaluations),
        names.F1: lambda: focus.one_call(sampler),
        names.F30: lambda: focus.best_sample(sampler),
        names.FURTHER1: lambda: (further.single(), []),
        names.FURTHER30: lambda: further.best_random(DRAWS),
    }
    arms, traces = {}, {}
    times = {f"training, {name}": log.seconds for name, log in logs.items()}
    times["sampler and rewards"] = logs[FOCUS].sampler_seconds
    for arm, search in searches.items():
        start = time.perf_counter()
        arms[arm], traces[arm] = search()
        times[f"search, {arm}"] = time.perf_counter() - start
    chances, entropies = learned(sampler, uniform.budgets, seed)
    return SeedResult(
        seed,
        list(uniform.budgets),
        arms,
        {arm: traces[arm] for arm in (names.RANDOM, names.EVOLUTION, names.F1)},
        {name: logs[name].sampled for name in (UNIFORM, FOCUS)},
        logs[FOCUS].updates,
        chances,
        entropies,
        alone=measure_alone(digits, reach, folder, config),
        times=times,
    )


@torch.no_grad()
def learned(sampler: ArchitectureSampler, budgets: tuple[float, ...], seed: int) -> tuple[list[Any], list[float]]:
    """For each budget the shares of every choice, and the mean entropy of a token."""
    chances, entropies = [], []
    for number, budget in enumerate(budgets):
        first, second = (torch.Generator().manual_seed(seed_of(seed, SAMPLES, number, i)) for i in range(2))
        shares = sampler.chances(budget, POLICY_DRAWS, first)
        chances.append({kind: share.tolist() for kind, share in shares.items()})
        entropies.append(sampler.sample(budget, POLICY_DRAWS, second).entropy.mean().item())
    return chances, entropies


def measure_alone(digits: Digits, reach: Reachable, folder: Path, config: ExperimentConfig) -> dict[str, list[float]]:
    """Test accuracy of sub-networks with the uniform supernet's weights, and trained alone; their costs."""
    found: dict[str, list[float]] = {"inherited": [], "alone": [], "cost": []}
    if not config.alone_of(digits.seed):
        return {}
    supernet = SavedSupernet.from_pretrained(folder / UNIFORM / MODEL)
    for number in range(config.alone):
        architecture = alone_architecture(digits.seed, number)
        found["inherited"].append(accuracy_and_loss(supernet, digits.test, architecture)[0])
        network = train_alone(number, digits, folder, config, lambda steps: None)
        found["alone"].append(accuracy_and_loss(network, digits.test)[0])
        found["cost"].append(float(reach.cost(architecture)))
    return found


def seed_folder(run: Path, seed: int) -> Path:
    """What a seed leaves."""
    return run / f"seed-{seed}"
