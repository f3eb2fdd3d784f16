"""The options of a supernet's training, and what they build: space, supernet, sampler, strategy, probes."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from focusformer.method.architecture import AUTOFORMER, Architecture, SearchSpace
from focusformer.method.cost import LatencyTable
from focusformer.method.reinforce import Reinforce
from focusformer.method.strategies import (
    BestOfK,
    Focus,
    FocusOptions,
    ResourceUniform,
    Sandwich,
    Strategy,
    Uniform,
)
from focusformer.method.unsampled import Unsampled
from focusformer.models.folders import SavedSupernet, load_supernet
from focusformer.models.released import read_architecture, read_space, start_from
from focusformer.models.saved_sampler import KINDS, SavedSampler, constraint
from paperkit.data.images import ImageData
from paperkit.data.seeding import seed_of
from paperkit.errors import UserError
from paperkit.files.keys import first_few
from paperkit.files.runs import process_rank

SAMPLER = 1
"""Stream of random numbers."""
Name = Literal["focusformer", "uniform", "resource-uniform", "sandwich", "best-of-k"]


@dataclass
class NetworkConfig:
    """The supernet.

    Args:
        space: ti, s, b, or a YAML file of one.
        options: further sizes in place of the space's (patch_size, max_relative_position, qkv_bias_layout, ...); image
            size and classes follow the data.
        weights: what it starts from: a run, a folder, or a file under the official keys.
        drop_rate, drop_path_rate: dropout, and stochastic depth of the last stored layer.
        unsampled: what a step leaves out: `decay`, as in the official runs, still decays and keeps its momentum once it
            has been used; `skip` leaves whole tensors that the step does not use alone.
        trust_pickle: read weights whose file may run code.
    """

    space: str = "ti"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    unsampled: Unsampled = "decay"
    trust_pickle: bool = False


@dataclass
class StrategyConfig:
    """Which architectures a step trains, and when FocusFormer's sampler learns.

    Args:
        name: focusformer; uniform (AutoFormer); resource-uniform (a budget, then uniformly within it); sandwich
            (largest, smallest and random ones, which learn from the largest); best-of-k (of a budget, by one held-out
            batch, after AttentiveNAS).
        middle: random architectures of a sandwich. k: candidates of best-of-k.
        warmup: share of the steps before the sampler learns. focused: before its samples are trained (None: the same).
        interval: steps between two updates of the sampler. samples: architectures of an update.
        constraints: budgets of an update (None: one for each sample; one in all for the group's baseline).
        exploration: chance of a uniform draw instead of the sampler's.
        jitter: draw budgets around the anchors instead of the anchors themselves.
        reward_batch: held-out images of a process for an update; None is a quarter of the batch.
    """

    name: Name = "focusformer"
    middle: int = 2
    k: int = 3
    warmup: float = 0.1
    focused: float | None = None
    interval: int = 10
    samples: int = 8
    constraints: int | None = None
    exploration: float = 0.05
    jitter: bool = True
    reward_batch: int | None = None

    def options(self, steps: int) -> FocusOptions:
        """Of a training of that many steps."""
        names = ("warmup", "focused", "interval", "samples", "constraints", "exploration", "jitter")
        return FocusOptions(steps, **{name: getattr(self, name) for name in names})


@dataclass
class SamplerConfig:
    """The sampler, and the budgets that resource-uniform and best-of-k draw by.

    Args:
        policy: lstm, or the factorised table.
        cost: constraint: flops (the official counter, as in the papers' tables), params, macs, latency. Several, such
            as flops,params, condition it on either.
        anchors: how many budgets of each, evenly spaced between the 1 % and 99 % quantiles of the cost.
        spacing: even, log, or quantile (as many architectures between each).
        least: share of a budget that an architecture has to use.
        latency_table: file of `focusformer latency`.
        temperature, tanh, clip: shape of its logits.
        masking: exact masks; without them a penalty (reward.penalty) has to teach it the constraint.
    """

    policy: Literal["lstm", "table"] = "lstm"
    cost: str = "flops"
    anchors: int = 9
    spacing: Literal["even", "log", "quantile"] = "even"
    least: float = 0.9
    latency_table: str | None = None
    temperature: float = 1.0
    tanh: float = 0.0
    clip: float = 0.0
    masking: bool = True

    @property
    def costs(self) -> list[str]:
        """The kinds of constraint."""
        return [kind.strip() for kind in self.cost.split(",")]

    def build(self, space: SearchSpace) -> SavedSampler:
        """The sampler of a space, with fresh weights.

        Raises:
            UserError: values that cannot be, or a table that lacks entries.
        """
        table = None if self.latency_table is None else LatencyTable.read(self.latency_table)
        if unknown := [kind for kind in self.costs if kind not in KINDS]:
            raise UserError(f"sampler.cost {unknown[0]!r} is none of {', '.join(KINDS)}")
        anchors = {
            kind: list(constraint(space, kind, self.least, table).anchors(self.anchors, self.spacing))
            for kind in self.costs
        }
        return SavedSampler(
            space.to_plain(), anchors, self.policy, self.least, None if table is None else table.to_plain(),
            self.temperature, self.tanh, self.clip, self.masking,
        )  # fmt: skip


@dataclass
class ProbesConfig:
    """The architectures whose accuracy is measured after each epoch, always the same ones.

    Args:
        named: further ones beside the smallest, the middle and the largest of the space, and AutoFormer's of ti, s and
            b: name -> one-line text (192/3,3,4/3.5,4,4), AutoFormer-T, -S, -B, or a .json file in AutoFormer's form.
    """

    named: dict[str, str] = field(default_factory=dict)

    def of(self, space: SearchSpace, name: str) -> dict[str, Architecture]:
        """Name -> architecture.

        Raises:
            UserError: one above the super sizes, or a name that is taken or no word.
        """
        found = {"smallest": space.smallest(), "middle": space.middle(), "largest": space.largest()}
        if name in AUTOFORMER:
            found["autoformer"] = AUTOFORMER[name]
        for own, text in self.named.items():
            if own in found or not own.replace("_", "").isalnum():
                raise UserError(f"probe {own!r}: letters, digits and _, and none of {', '.join(found)}")
            found[own] = read_architecture(text)
            space.sizes.check(found[own])
        return found


def space_of(config: NetworkConfig, data: ImageData) -> SearchSpace:
    """The space for the size and the classes of the data.

    Raises:
        UserError: no such space, or options that cannot be.
    """
    space = read_space(config.space)
    given = {"img_size": data.input_size, "num_classes": data.num_classes, "in_chans": 3, **config.options}
    plain = space.to_plain()
    return SearchSpace.from_plain({**plain, "SUPERNET": {**plain["SUPERNET"], **given}})


def build_supernet(config: NetworkConfig, space: SearchSpace) -> SavedSupernet:
    """The supernet, with the weights that it starts from.

    Raises:
        UserError: weights that do not fit.
    """
    network = SavedSupernet(space.to_plain(), config.drop_rate, config.drop_path_rate)
    if config.weights is not None:
        start = load_supernet(config.weights, config.trust_pickle)
        changed = start_from(network, start.state_dict(), config.weights)
        if changed and process_rank() == 0:
            print(f"{config.weights}: {first_few(changed)} resized or begun anew")
    return network


def build_strategy(options: Any, space: SearchSpace, steps: int) -> Strategy:
    """What the steps of a run of `steps` train.

    Raises:
        UserError: options that cannot be.
    """
    config, seed = options.strategy, options.training_seed
    if config.name == "uniform":
        return Uniform(space, seed)
    if config.name == "sandwich":
        return Sandwich(space, seed, config.middle)
    with torch.random.fork_rng(devices=[]):  # the same on every process, whatever each has drawn before
        torch.manual_seed(seed_of(seed, SAMPLER))
        sampler = options.sampler.build(space)
    if config.name == "focusformer":
        return Focus(sampler, Reinforce(sampler, options.reinforce), seed, config.options(steps), options.reward)
    reachable, anchors = sampler.reachable[sampler.kinds[0]], sampler.constraint().anchors.tolist()
    if config.name == "resource-uniform":
        return ResourceUniform(reachable, anchors, seed)
    return BestOfK(reachable, anchors, seed, config.k)
