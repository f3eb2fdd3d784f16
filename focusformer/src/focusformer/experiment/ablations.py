"""Ablations of the embedded experiment, one setting at a time; the paper's own tables could not be had.

Each arm trains a supernet on digits as the experiment does, but for its change. Then three ways to choose an
architecture for each of the four budgets are tried on that same supernet, which tells what training gained and what the
search did: one call (of the sampler; where there is none, a random architecture that fits, the mean of 12), the best of
30 random ones, and evolution. Everything is a function of the seed; an arm that is done is not done again.
"""

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from torch.nn import functional as F

from focusformer.experiment.choosing import SPACE, Chooser, accuracy_and_loss, budgets, reachable
from focusformer.experiment.digit_images import Digits, split_digits
from focusformer.experiment.settings import DRAWS, POLICY_CLIP, ExperimentConfig
from focusformer.experiment.supernets import INITIAL, Advance, new_supernet, one_cycle
from focusformer.method.architecture import Architecture
from focusformer.method.reachable import Reachable
from focusformer.method.reinforce import Reinforce, ReinforceOptions, RewardOptions, Scores
from focusformer.method.sampler import ArchitectureSampler
from focusformer.method.strategies import (
    BestOfK,
    Focus,
    FocusOptions,
    ResourceUniform,
    Sandwich,
    Strategy,
    Uniform,
    training_losses,
)
from focusformer.method.supernet import Supernet
from paperkit.data.seeding import seed_generators
from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic

DEFAULT = ExperimentConfig()


@dataclass(frozen=True)
class Ablation:
    """One arm; the defaults are the experiment's.

    Args:
        strategy: what the steps train. policy: form of the sampler.
        quality, penalty, beta: of the reward. masking: exact masks.
        baseline: group, anchor or shared. constraints: budgets of an update.
        warmup, focused: shares of the steps before the sampler learns, and before its samples are trained.
        interval: steps between updates. anchors: how many budgets it is conditioned on.
        entropy, exploration: weight of the bonus, and chance of a uniform draw.
        images: of a reward batch.
        further: factor on the steps.
    """

    strategy: str = "focusformer"
    policy: str = DEFAULT.policy
    quality: str = "likelihood"
    penalty: str = "none"
    beta: float = 1.0
    masking: bool = True
    baseline: str = "group"
    constraints: int | None = None
    warmup: float = 0.1
    focused: float = 0.2
    interval: int = 2
    anchors: int = 4
    entropy: float = DEFAULT.entropy
    exploration: float = 0.05
    images: int = 100
    further: float = 1.0


REFERENCE = Ablation()
UNMASKED = replace(REFERENCE, masking=False, penalty="absolute")
UNIFORM = replace(REFERENCE, strategy="uniform")
PER_SAMPLE = replace(REFERENCE, baseline="anchor", constraints=4)
ABLATIONS = {
    "FocusFormer, as in the experiment": REFERENCE,
    "uniform": UNIFORM,
    "uniform, steps for the rewards' time": replace(UNIFORM, further=1 + 0.9 * 400 / (2 * 3 * 64)),
    "resource-uniform": replace(REFERENCE, strategy="resource-uniform"),
    "sandwich": replace(REFERENCE, strategy="sandwich"),
    "sandwich, a quarter of the steps": replace(REFERENCE, strategy="sandwich", further=0.25),
    "best of 3": replace(REFERENCE, strategy="best-of-k"),
    "table policy": replace(REFERENCE, policy="table"),
    "reward: accuracy": replace(REFERENCE, quality="accuracy"),
    "penalty absolute, no masks": UNMASKED,
    "penalty absolute 0.3, no masks": replace(UNMASKED, beta=0.3),
    "penalty hinge, no masks": replace(UNMASKED, penalty="hinge"),
    "penalty hard, no masks": replace(UNMASKED, penalty="hard"),
    "baseline per anchor": PER_SAMPLE,
    "baseline shared": replace(PER_SAMPLE, baseline="shared"),
    "warm-up 0": replace(REFERENCE, warmup=0.0, focused=0.0),
    "warm-up 0.4": replace(REFERENCE, warmup=0.4, focused=0.4),
    "interval 1": replace(REFERENCE, interval=1),
    "interval 8": replace(REFERENCE, interval=8),
    "2 anchors": replace(REFERENCE, anchors=2),
    "8 anchors": replace(REFERENCE, anchors=8),
    "entropy 0": replace(REFERENCE, entropy=0.0),
    "entropy 0.2": replace(REFERENCE, entropy=0.2),
    "exploration 0": replace(REFERENCE, exploration=0.0),
    "exploration 0.3": replace(REFERENCE, exploration=0.3),
    "reward batch 25": replace(REFERENCE, images=25),
    "reward batch 300": replace(REFERENCE, images=300),
}
"""Arm -> its setting. A step of the sandwich makes four passes: at a quarter of the steps it costs as much."""


@dataclass(frozen=True)
class Outcome:
    """What an arm gave for one seed; accuracies in % and losses on test images, means over the budgets.

    Attributes:
        one_call, one_call_loss: of the one call. fits: share of the budgets that its architecture keeps.
        best_of_30, evolution: of these searches on the same supernet.
        entropy, feasible: of the sampler's last tenth of updates; nan without a sampler.
        seconds: of training. sampler_share: of them spent on drawing, rewards and updates, in %.
    """

    one_call: float
    one_call_loss: float
    fits: float
    best_of_30: float
    evolution: float
    entropy: float
    feasible: float
    seconds: float
    sampler_share: float


def run_seed(
    seed: int, advance: Advance, folder: str, names: list[str], steps: int, evaluations: int
) -> dict[str, Outcome]:
    """Every arm of a seed, or its kept outcome."""
    digits, reach, found = split_digits(seed), reachable(), {}
    for name in names:
        place = Path(folder) / f"seed-{seed}" / f"{list(ABLATIONS).index(name):02}.json"
        asked = {"arm": name, **asdict(ABLATIONS[name]), "steps": steps, "evaluations": evaluations}
        known = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
        if known.get("setting") == asked:
            kept = {field.name: known["outcome"][field.name] for field in fields(Outcome)}
            found[name] = Outcome(**{key: float("nan") if value is None else value for key, value in kept.items()})
        else:
            found[name] = run_arm(ABLATIONS[name], digits, reach, steps, evaluations)
            kept = {key: None if value != value else value for key, value in asdict(found[name]).items()}
            write_atomic(place, json.dumps({"setting": asked, "outcome": kept}, indent=1) + "\n")
        advance(1)
    return found


def strategy_of(arm: Ablation, seed: int, reach: Reachable, steps: int) -> Strategy:
    """What the arm's steps train.

    Raises:
        UserError: a strategy that does not exist.
    """
    anchors = reach.anchors(arm.anchors, "log", (0.05, 0.95))
    plain = {
        "uniform": lambda: Uniform(SPACE, seed),
        "resource-uniform": lambda: ResourceUniform(reach, anchors, seed),
        "sandwich": lambda: Sandwich(SPACE, seed),
        "best-of-k": lambda: BestOfK(reach, anchors, seed),
    }
    if arm.strategy in plain:
        return plain[arm.strategy]()
    if arm.strategy != "focusformer":
        raise UserError(f"strategy {arm.strategy!r} does not exist; known: {', '.join([*plain, 'focusformer'])}")
    seed_generators(seed, INITIAL)
    sampler = ArchitectureSampler(reach, anchors, arm.policy, clip=POLICY_CLIP, masking=arm.masking)  # type: ignore[arg-type]
    learning = ReinforceOptions(lr=DEFAULT.policy_lr, entropy=arm.entropy, baseline=arm.baseline)  # type: ignore[arg-type]
    options = FocusOptions(
        steps, arm.warmup, arm.focused, arm.interval, samples=4, constraints=arm.constraints,
        exploration=arm.exploration, jitter=False,
    )  # fmt: skip
    rewards = RewardOptions(arm.quality, arm.penalty, arm.beta)  # type: ignore[arg-type]
    return Focus(sampler, Reinforce(sampler, learning), seed, options, rewards)


def run_arm(arm: Ablation, digits: Digits, reach: Reachable, steps: int, evaluations: int) -> Outcome:
    """Trains a supernet and tries the three searches on it."""
    steps = max(1, round(arm.further * steps))
    supernet, strategy = new_supernet(digits.seed), strategy_of(arm, digits.seed, reach, steps)
    optimizer = torch.optim.AdamW(supernet.parameters(), DEFAULT.lr, fused=True)
    learned, in_sampler, begin = [], 0.0, time.perf_counter()
    for step, rate in enumerate(one_cycle(DEFAULT.lr, steps)):

        def scores(architectures: list[Architecture], step: int = step) -> Scores:
            batch = digits.reward_batch(step, arm.images)
            accuracy, loss = zip(*(accuracy_and_loss(supernet, batch, one) for one in architectures), strict=True)
            return Scores(torch.tensor(accuracy) / 100, torch.tensor(loss))

        start = time.perf_counter()
        passes = strategy.plan(step, scores)
        in_sampler += time.perf_counter() - start
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        batch = digits.training_batch(step, DEFAULT.batch_size)
        losses = training_losses(supernet.train(), passes, *batch, F.cross_entropy, Tensor.backward)
        if not losses[0].isfinite():
            raise UserError(f"the loss is not finite at step {step} (learning rate {rate:.3g})")
        optimizer.step()
        start = time.perf_counter()
        update = strategy.learn(step, scores)
        in_sampler += time.perf_counter() - start
        learned += [] if update is None else [update.means]
    seconds = time.perf_counter() - begin
    last = learned[-max(1, len(learned) // 10) :]
    called, call_loss, fits = one_call(supernet, strategy, digits, reach)
    chooser = Chooser(supernet, digits, reach, 0)
    return Outcome(
        called, call_loss, fits,
        best_of_30=mean(found.accuracy for found in chooser.best_random(DRAWS)[0]),
        evolution=mean(found.accuracy for found in chooser.evolution(evaluations)[0]),
        entropy=mean(values["entropy"] for values in last) if last else float("nan"),
        feasible=mean(values["feasible"] for values in last) if last else float("nan"),
        seconds=seconds,
        sampler_share=100 * in_sampler / seconds,
    )  # fmt: skip


def one_call(supernet: Supernet, strategy: Strategy, digits: Digits, reach: Reachable) -> tuple[float, float, float]:
    """Test accuracy in %, test loss, and the share of budgets that are kept, of one architecture for each budget."""
    if not isinstance(strategy, Focus):
        found = Chooser(supernet, digits, reach, 0).single()
        return mean(one.accuracy for one in found), mean(one.loss for one in found), 1.0
    chosen = {budget: strategy.sampler.greedy(budget) for budget in budgets(reach)}
    results = [accuracy_and_loss(supernet, digits.test, architecture) for architecture in chosen.values()]
    kept = [reach.window(budget).holds(reach.cost(architecture)) for budget, architecture in chosen.items()]
    return mean(accuracy for accuracy, _ in results), mean(loss for _, loss in results), mean(map(float, kept))
