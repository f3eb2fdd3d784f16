"""Training of the supernets, each in a folder of its own: resumable at any step, kept when it is done."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.tensorboard import SummaryWriter

from focusformer.experiment.choosing import SPACE, accuracy_and_loss, budgets
from focusformer.experiment.digit_images import Digits
from focusformer.experiment.settings import (
    COST,
    FOCUS,
    GROUP,
    POLICY_CLIP,
    REWARD_IMAGES,
    REWARD_START,
    SAMPLED_START,
    UPDATE_EVERY,
    WINDOW,
    ExperimentConfig,
)
from focusformer.method.architecture import Architecture
from focusformer.method.reachable import Reachable
from focusformer.method.reinforce import Reinforce, ReinforceOptions, RewardOptions, Scores
from focusformer.method.strategies import Focus, FocusOptions, Strategy, Uniform, Update, training_losses
from focusformer.models.folders import SavedSupernet
from focusformer.models.saved_sampler import SavedSampler
from paperkit.data.seeding import seed_generators
from paperkit.errors import Interrupted, UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import load_strict, read_checkpoint, save_checkpoint
from paperkit.training.stages import SAVE_EVERY, sigterm_noted

Advance = Callable[[int], None]
INITIAL = 5  # stream of random numbers
MODEL, SAMPLER = "model", "sampler"
"""Folders of a finished training; verbs take the folder that they lie in for `--ckpt`."""


@dataclass
class Log:
    """What a training notes.

    Attributes:
        losses: of every step. sampled: cost of its architecture.
        updates: columns of one entry an update of the sampler, see `SeedResult.sampler`.
        seconds: of the training; `sampler_seconds`: those of them spent on drawing, rewards and updates.
    """

    losses: list[float] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    updates: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    sampler_seconds: float = 0.0

    def note(self, update: Update) -> None:
        """Adds an update of the sampler."""
        for column, value in {"step": update.step, "anchor": update.anchors[0], **update.means}.items():
            self.updates.setdefault(column, []).append(float(value))


def new_supernet(seed: int) -> SavedSupernet:
    """A supernet whose initial weights are a function of the seed."""
    seed_generators(seed, INITIAL)
    return SavedSupernet(SPACE.to_plain())


def new_sampler(seed: int, reach: Reachable, config: ExperimentConfig) -> SavedSampler:
    """A sampler for the budgets, whose first choices are uniform among those that can still fit."""
    seed_generators(seed, INITIAL)
    return SavedSampler(SPACE.to_plain(), {COST: list(budgets(reach))}, config.policy, WINDOW, clip=POLICY_CLIP)


def new_strategy(name: str, seed: int, reach: Reachable, config: ExperimentConfig) -> Strategy:
    """How a supernet's architectures are drawn."""
    if name != FOCUS:
        return Uniform(SPACE, seed)
    sampler = new_sampler(seed, reach, config)
    reinforce = Reinforce(sampler, ReinforceOptions(lr=config.policy_lr, entropy=config.entropy, baseline="group"))
    options = FocusOptions(
        config.steps, REWARD_START, SAMPLED_START, interval=UPDATE_EVERY, samples=GROUP, jitter=False
    )
    return Focus(sampler, reinforce, seed, options, RewardOptions("likelihood"))


def one_cycle(lr: float, steps: int) -> list[float]:
    """The rate of every step, by torch's schedule."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr)
    schedule = OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


def train_supernet(
    name: str, digits: Digits, reach: Reachable, folder: Path, config: ExperimentConfig, advance: Advance
) -> None:
    """Trains a supernet into `folder`, unless it is there.

    Raises:
        UserError: a loss that is not finite. Interrupted: after SIGTERM, with a checkpoint written.
    """
    steps, last = config.steps_of(name), folder / "last.ckpt"
    if (folder / MODEL).exists():
        last.unlink(missing_ok=True)  # of a run that was killed between the two
        advance(steps)
        return
    supernet, strategy, log = new_supernet(digits.seed), new_strategy(name, digits.seed, reach, config), Log()
    optimizer = torch.optim.AdamW(supernet.parameters(), config.lr, fused=True)
    first = 0
    if last.exists():
        kept = read_checkpoint(last, advice=None)
        load_strict(supernet, kept["model"], str(last))
        optimizer.load_state_dict(kept["optimizer"])
        strategy.load_state_dict(kept["strategy"])
        first, log = kept["step"], Log(**kept["log"])
    advance(first)
    rates = one_cycle(config.lr, steps)

    def save(step: int) -> None:
        states = dict(model=supernet.state_dict(), optimizer=optimizer.state_dict(), strategy=strategy.state_dict())
        save_checkpoint(last, dict(states, step=step, log=vars(log)))

    with sigterm_noted() as received:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
            one_step(supernet, optimizer, strategy, digits, reach, step, config.batch_size, log)
            if log.losses[-1] != log.losses[-1] or abs(log.losses[-1]) == float("inf"):
                raise UserError(f"the loss is not finite at step {step} of {name} (learning rate {rates[step]:.3g})")
            advance(1)
            if received:
                save(step + 1)
                raise Interrupted(f"interrupted after step {step + 1} of {name}", 128 + received[0])
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < steps:
                save(step + 1)
    write_atomic(folder / "losses.json", json.dumps(log.losses) + "\n")
    write_atomic(folder / "log.json", json.dumps(vars(log)) + "\n")
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for step, loss in enumerate(log.losses):
            writer.add_scalar("loss", loss, step)
    if isinstance(strategy, Focus):
        assert isinstance(strategy.sampler, SavedSampler)
        strategy.sampler.save_pretrained(folder / SAMPLER)
    supernet.save_pretrained(folder / MODEL)  # last: where it is, everything is
    last.unlink(missing_ok=True)


def one_step(
    supernet: SavedSupernet,
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    digits: Digits,
    reach: Reachable,
    step: int,
    batch_size: int,
    log: Log,
) -> None:
    """One step of the weights, then of the sampler where it is due."""

    def evaluate(architectures: list[Architecture]) -> Scores:
        batch = digits.reward_batch(step, REWARD_IMAGES)
        accuracies, losses = zip(*(accuracy_and_loss(supernet, batch, one) for one in architectures), strict=True)
        supernet.train()
        return Scores(torch.tensor(accuracies) / 100, torch.tensor(losses))

    start = time.perf_counter()
    passes = strategy.plan(step, evaluate)
    planned = time.perf_counter()
    optimizer.zero_grad()
    images, labels = digits.training_batch(step, batch_size)
    losses = training_losses(supernet.train(), passes, images, labels, F.cross_entropy, torch.Tensor.backward)
    optimizer.step()
    trained = time.perf_counter()
    update = strategy.learn(step, evaluate)
    end = time.perf_counter()
    log.losses.append(losses[0].item())
    log.sampled.append(float(reach.cost(passes[0].architecture)))
    log.seconds += end - start
    log.sampler_seconds += planned - start + end - trained
    if update is not None:
        log.note(update)


def read_log(folder: Path) -> Log:
    """What a finished training noted."""
    content: Any = json.loads((folder / "log.json").read_text(encoding="utf-8"))
    return Log(**content)
