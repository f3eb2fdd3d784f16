"""Train a supernet on real images: each step trains what a strategy draws, the same on every process.

Options: --network.* the space and what all its sub-networks share, --strategy.* which architectures a step trains and
when the sampler learns, --sampler.*, --reward.*, --reinforce.* FocusFormer's sampler, --mixing.* the loss, --probes.*
the architectures that are validated, --optim.* optimiser and schedule, --data.* the images, --savings.* and --ema.* the
survey's savings, --trainer.* Lightning's Trainer (devices, num_nodes, strategy, ...).

`data.val_fraction` of the training images is held out: the sampler is rewarded by them and the probes are validated
with them; weights never see them, and the official validation images are the test set alone.
"""

import csv
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from focusformer.figures.policy import draw_policy
from focusformer.figures.probes import draw_probes
from focusformer.figures.sampled_costs import draw_sampled_costs
from focusformer.figures.sampler_curves import draw_sampler_curves
from focusformer.method.architecture import Architecture
from focusformer.method.cost import cost
from focusformer.method.reinforce import ReinforceOptions, RewardOptions, Scores
from focusformer.method.strategies import (
    Focus,
    Pass,
    Strategy,
    Update,
    training_losses,
)
from focusformer.method.unsampled import Unsampled, clear_gradients
from focusformer.models.folders import SavedSupernet, load_supernet
from focusformer.models.released import read_architecture
from focusformer.models.saved_sampler import SavedSampler
from focusformer.training.held_out import HeldOutBatches
from focusformer.training.options import (
    NetworkConfig,
    ProbesConfig,
    SamplerConfig,
    StrategyConfig,
    build_strategy,
    build_supernet,
    space_of,
)
from focusformer.training.recipe import MixingConfig, parameter_groups, strategy_of
from paperkit.command.engines import device
from paperkit.data.images import ImageData
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank, weights_of
from paperkit.files.weights import load_strict, read_checkpoint
from paperkit.results.record import Costs, record, told
from paperkit.results.report import save_figure
from paperkit.training.classification import accuracy_metrics, classification_loss, make_mixup, measured_accuracy
from paperkit.training.optim import OptimConfig, build, check_clipping, clip_gradients, lightning_dict, step_schedule
from paperkit.training.savings import EMA, Savings
from paperkit.training.savings import check as check_savings
from paperkit.training.switches import apply, callbacks, hardest, sharpened
from paperkit.training.trainer import (
    add_trainer_options,
    fit,
    last_evaluation,
    make_trainer,
    save_last_and_best,
    trainer_options,
)

RECIPE = {"optim.lr": 5e-4, "optim.lr_per_512": True, "optim.warmup_epochs": 20, "optim.warmup_lr": 1e-6,
          "optim.min_lr": 1e-5, "optim.step_per": "epoch", "optim.lag": 1}  # fmt: skip
"""AutoFormer's schedule: a rate for 512 images, absolute bounds, one step an epoch with the index just finished."""
REFUSED = {
    "attention": "relative position is part of each attention; both of its forms have the same results",
    "patch_drop": "relative positions need the whole grid of tokens",
    "checkpointing": "a supernet has none; extract a sub-network and fine-tune that",
    "compile": "each architecture has shapes of its own and would be compiled anew; extract a sub-network",
}
SPENT = (("parameters", "params", 1e6, "M"), ("official FLOPs", "official_flops", 1e9, "G"))
DRAWN = 200
"""Architectures that a figure of the policy draws for each budget."""


class SupernetTraining(pl.LightningModule):
    """One step: let the sampler learn from the step before, draw the architectures, train each on the mixed images.

    The sampler learns before the step that follows, so that every checkpoint, wherever it is written between two steps,
    stands at the same point: a resumed run makes the update that a kill cut off.
    """

    def __init__(
        self,
        network: SavedSupernet,
        strategy: Strategy,
        probes: Mapping[str, Architecture],
        mixing: MixingConfig,
        optim: OptimConfig,
        lengths: Mapping[str, int],
        unsampled: Unsampled = "decay",
        savings: Savings | None = None,
    ) -> None:
        super().__init__()
        self.network, self.strategy, self.probes = network, strategy, dict(probes)
        self.mixing, self.optim, self.lengths = mixing, optim, dict(lengths)
        self.unsampled, self.savings = unsampled, savings or Savings()
        classes = network.sizes.num_classes
        self.mix = make_mixup(mixing.mixup, mixing.cutmix, mixing.switch_prob, mixing.smoothing, classes)
        self.accuracy = nn.ModuleDict({name: accuracy_metrics(classes) for name in probes})
        self.held_out: HeldOutBatches | None = None
        self.passes: list[Pass] = []
        self.updates: list[dict[str, float]] = []
        """What the sampler's updates of this epoch told."""

    def forward(self, images: Tensor, architecture: Architecture) -> Tensor:
        """(B, 3, S, S) -> (B, K)."""
        return self.network(images, architecture)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Before the first batch of an optimiser step: the update of the sampler, and what the step trains."""
        if batch_idx % self.trainer.accumulate_grad_batches:
            return
        step = self.global_step
        if step and (update := self.strategy.learn(step - 1, partial(self.scores, step - 1))) is not None:
            self.note(update)
        self.passes = self.strategy.plan(step, partial(self.scores, step))

    @torch.no_grad()
    def scores(self, step: int, architectures: list[Architecture]) -> Scores:
        """Accuracy and loss (n,) of architectures on this process's part of the step's one held-out batch."""
        assert self.held_out is not None
        images, labels = (part.to(self.device, non_blocking=True) for part in self.held_out(step))
        found = []
        self.network.eval()
        for architecture in architectures:
            with self.trainer.precision_plugin.forward_context():
                logits = self.network(images, architecture)
            logits = logits.float()
            found.append(((logits.argmax(1) == labels).float().mean(), F.cross_entropy(logits, labels)))
        self.network.train()
        accuracy, loss = (torch.stack(values) for values in zip(*found, strict=True))
        return Scores(accuracy, loss)

    def note(self, update: Update) -> None:
        """Logs an update of the sampler, and keeps it for the epoch's means; reward and C / tau also by anchor."""
        groups: dict[str, list[float]] = {}
        for i, anchor in enumerate(update.anchors):
            groups.setdefault(f"reward_{update.kind}_{anchor}", []).append(update.rewards[i])
            groups.setdefault(f"used_{update.kind}_{anchor}", []).append(update.costs[i] / update.budgets[i])
        values = {**update.means, **{name: sum(found) / len(found) for name, found in groups.items()}}
        self.updates.append(values)
        self.write({f"sampler/{name}": value for name, value in values.items()})

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = hardest(self.network, self.losses, *batch, self.savings)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        criterion = partial(classification_loss, smoothing=self.mixing.smoothing)
        parts: list[Tensor] = []  # one backward pass for the sum: DDP averages the gradients of a step once
        first, *_ = training_losses(self.network, self.passes, images, labels, criterion, parts.append)
        self.log("train/loss", first, prog_bar=True)
        self.log("train/flops", cost(self.network.sizes, self.passes[0].architecture, "official_flops"))
        self.log("train/draws", float(self.strategy.draws))
        return torch.stack(parts).sum()

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image (B,) in the step's first architecture, by which `keep_hardest` ranks them."""
        logits = self.network(images, self.passes[0].architecture)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.mixing.smoothing)

    def on_train_epoch_end(self) -> None:
        """Means of the sampler's updates in this epoch."""
        means = {}
        for name in sorted({name for values in self.updates for name in values}):
            found = [values[name] for values in self.updates if name in values]
            means[f"epoch/{name}"] = sum(found) / len(found)
        if means:
            self.write(means)
        self.updates = []

    def write(self, values: Mapping[str, float]) -> None:
        """Logs values of now; Lightning's own `log` would repeat them with every step that follows."""
        for logger in self.loggers:
            logger.log_metrics(dict(values), step=self.global_step)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        for name, architecture in self.probes.items():
            self.accuracy[name].update(self.network(batch[0], architecture), batch[1])  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Accuracy of each probe, and `val/acc1`, their mean, which chooses the best checkpoint."""
        found = {name: self.accuracy[name].compute()["acc1"] for name in self.probes}  # type: ignore[operator]
        for metric in self.accuracy.values():
            metric.reset()  # type: ignore[operator]
        self.log_dict({f"val/acc1_{name}": value for name, value in found.items()})
        self.log("val/acc1", torch.stack([*found.values()]).mean(), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The strategy, with sampler, baselines and counts."""
        checkpoint["strategy"] = self.strategy.state_dict()
        checkpoint["sampler_updates"] = self.updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with it."""
        self.strategy.load_state_dict(checkpoint["strategy"])
        self.updates = [dict(values) for values in checkpoint["sampler_updates"]]

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.network, self.optim.weight_decay)
        optimizer, schedule = build(groups, self.optim, **self.lengths)
        return lightning_dict(sharpened(optimizer, self.savings), schedule)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """By `network.unsampled`."""
        clear_gradients(optimizer, self.unsampled)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """The Trainer's, or adaptive."""
        clip_gradients(self, optimizer, self.optim, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """After every epoch or step."""
        step_schedule(scheduler, self.trainer)


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--training_seed", type=int, default=0, help="weights, architectures, drop path and mixing")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    groups = {"network": NetworkConfig, "strategy": StrategyConfig, "sampler": SamplerConfig, "reward": RewardOptions,
              "reinforce": ReinforceOptions, "mixing": MixingConfig, "probes": ProbesConfig, "optim": OptimConfig,
              "data": ImageData, "savings": Savings, "ema": EMA}  # fmt: skip
    for name, kind in groups.items():
        parser.add_class_arguments(kind, name)
    parser.set_defaults(RECIPE)
    add_trainer_options(parser, defaults={"max_epochs": 500})


def check(options: Any, run: RunFolder | None) -> None:
    """Refuse what this training cannot take, or not together, before any data are read; the model is built for it.

    Raises:
        UserError: the first of them.
    """
    data, trainer = options.data, trainer_options(options.trainer)
    epochs = trainer["max_epochs"]
    if data.stream or not data.val_fraction:
        raise UserError(
            f"data.val_fraction {data.val_fraction} of {data.dataset}: rewards and probes need images held out of the "
            "training set, such as 0.039 (50,000 of ImageNet's); a stream (wds/) has none"
        )
    options.mixing.check(data.batch_size)
    mixes = bool(options.mixing.mixup or options.mixing.cutmix)
    check_savings(
        options.savings, trainer, ema=options.ema, mixing=mixes, distillation=options.strategy.name == "sandwich",
        sizes=data.sizes.sizes, refused=REFUSED,
    )  # fmt: skip
    if len(data.sizes.sizes) > 1:
        raise UserError("data.size_schedule: positions of a supernet are those of one image size")
    strategy_of(trainer)
    check_clipping(options.optim, trainer.get("gradient_clip_val"))
    if options.reward.penalty == "none" and not options.sampler.masking and options.strategy.name == "focusformer":
        raise UserError("sampler.masking false and reward.penalty none: nothing would keep the budget; take absolute")
    space = space_of(options.network, data)
    options.probes.of(space, options.network.space)
    build_strategy(options, space, epochs)
    with torch.device("meta"):
        model = SavedSupernet(space.to_plain())
    apply(model, options.savings)
    build(parameter_groups(model, options.optim.weight_decay), options.optim, 1, epochs, global_batch=1)


def train(run: RunFolder, options: Any, resuming: bool) -> SupernetTraining:
    """Train to the end, or from the last checkpoint; `model/` (last), `best/` and `sampler/` are folders."""
    start, data, seed = time.monotonic(), options.data, options.training_seed
    network = options.network
    if resuming and (run.path / "checkpoints" / "last.ckpt").exists():  # which holds all weights
        network = replace(network, weights=None)
    pl.seed_everything(seed, workers=False, verbose=False)
    space = space_of(network, data)
    model = build_supernet(network, space)
    apply(model, options.savings)
    given = trainer_options(options.trainer)
    trainer = make_trainer(
        run.path,
        {**given, "strategy": strategy_of(given)},
        seed,
        resume_with=f"focusformer train --resume {run.path}",
        save_every=options.save_every,
        best="val/acc1",
        averaging=callbacks(options.ema),
        csv=True,
    )
    data.trainer = trainer
    data.setup()
    epochs, accumulated = given["max_epochs"], trainer.accumulate_grad_batches
    steps = max(1, -(-data.steps_per_epoch // accumulated))  # Lightning steps with what remains of an epoch as well
    lengths = dict(
        steps_per_epoch=steps, epochs=epochs, global_batch=data.batch_size * trainer.world_size * accumulated
    )
    strategy = build_strategy(options, space, steps * epochs)
    probes = options.probes.of(space, network.space)
    training = SupernetTraining(
        model, strategy, probes, options.mixing, options.optim, lengths, network.unsampled, options.savings
    )
    training.held_out = HeldOutBatches(
        data.val_dataloader().dataset,
        options.strategy.reward_batch or max(1, data.batch_size // 4),
        seed,
        trainer.global_rank,
        trainer.world_size,
        data.num_workers,
    )
    fit(trainer, training, data, resuming)
    if process_rank() == 0:
        finish(run, training, options, time.monotonic() - start)
    return training


def finish(run: RunFolder, training: SupernetTraining, options: Any, seconds: float) -> None:
    """Write model/, best/, the samplers of both, and metrics.json with a probe a row."""
    network, strategy = training.network.cpu(), training.strategy
    save_last_and_best(network, run.path)
    if isinstance(strategy, Focus):
        save_samplers(strategy.sampler, run.path)  # type: ignore[arg-type]  # as `SamplerConfig.build` made it
    measured = last_evaluation(training.trainer)
    extra = {"space": network.space.to_plain(), "probes": {name: str(a) for name, a in training.probes.items()},
             "strategy": asdict(options.strategy), "sampler": asdict(options.sampler),
             "reward": asdict(options.reward), "reinforce": asdict(options.reinforce), "optim": asdict(training.optim),
             "lengths": training.lengths, "draws": strategy.draws, "evaluations": strategy.evaluations}  # fmt: skip
    for name, architecture in training.probes.items():
        found = {"val/acc1": 100 * measured[f"val/acc1_{name}"]}
        spent = costs(network, architecture)
        record(run.path, "focusformer", name, found, options.training_seed, seconds, spent, extra)
    print(f"{run.path}: model/ (last), best/ (highest mean accuracy of the probes); search: focusformer search --ckpt "
          f"{run.path}; evaluate: focusformer eval --ckpt {run.path}")  # fmt: skip


def save_samplers(sampler: SavedSampler, run: Path) -> None:
    """Writes `run/sampler/`, of the last step, and `run/best_sampler/`, of the step that `best/` is of."""
    sampler.save_pretrained(run / "sampler")
    best = run / "checkpoints" / "best.ckpt"
    if best.is_file():
        last = {key: value.clone() for key, value in sampler.state_dict().items()}
        load_strict(sampler, read_checkpoint(best, advice=None)["strategy"]["sampler"], str(best))
        sampler.save_pretrained(run / "best_sampler")
        sampler.load_state_dict(last)


def costs(network: SavedSupernet, architecture: Architecture) -> Costs:
    """Parameters, and FLOPs by the official counter, by which the papers' tables are told."""
    sizes = network.sizes
    return [(name, cost(sizes, architecture, kind) / scale, unit) for name, kind, scale, unit in SPENT]


class Chosen(nn.Module):
    """One architecture of a supernet as a classifier."""

    def __init__(self, network: SavedSupernet, architecture: Architecture) -> None:
        super().__init__()
        self.network, self.architecture = network, architecture

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K)."""
        return self.network(images, self.architecture)


def add_evaluation_arguments(parser: Any) -> None:
    """What an evaluation does besides."""
    by = "architectures (text, AutoFormer-T, or a .json file); default: the probes"
    parser.add_argument("--architectures", type=list[str], default=[], help=by)
    parser.add_argument("--autocast", type=Literal["float16", "bfloat16"] | None, default=None, help="precision")


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Test accuracy of architectures of a run's last supernet, or of --ckpt FILE_OR_FOLDER."""
    start, data = time.monotonic(), options.data
    space = None if run is not None else options.network.space
    network = load_supernet(weights_of(run, options.ckpt), options.trust_pickle, space)
    chosen = {text: read_architecture(text) for text in options.architectures}
    chosen = chosen or options.probes.of(network.space, options.network.space)
    for architecture in chosen.values():
        network.sizes.check(architecture)
    data.use_head(network.sizes.num_classes)
    data.setup()
    on = device(options.device)
    for name, architecture in chosen.items():
        model = Chosen(network, architecture)
        found = measured_accuracy(model, data.test_dataloader(), network.sizes.num_classes, on, options.autocast)
        spent = costs(network, architecture)
        told(f"{name}: {architecture}", found, spent)
        seconds = time.monotonic() - start
        record(Path(options.output), "focusformer", name, found, options.training_seed, seconds, spent)


def figures(run: RunFolder | None, options: Any) -> list[Path]:
    """Of a run: the probes, costs of the sampled architectures, how the sampler learned, what it chooses."""
    if run is None:
        raise UserError(f"{options.run} is no run folder")
    target, rows = Path(options.output or run.path / "figures"), logged(run.path)
    curves = {
        name.removeprefix("val/acc1_"): [100 * float(row[name]) for row in rows if row.get(name)]
        for name in (rows[0] if rows else {})
        if name.startswith("val/acc1_")
    }
    drawn = {"probes": draw_probes(curves, f"Probes of {run.path.name}: the same architectures after each epoch")}
    sampled = [float(row["train/flops"]) / 1e9 for row in rows if row.get("train/flops")]
    folder = run.path / "sampler"
    anchors: list[float] = []
    if folder.is_dir():
        sampler = SavedSampler.from_pretrained(folder)
        kind = sampler.kinds[0]
        budgets = sampler.constraint().anchors.tolist()
        anchors = [budget / 1e9 for budget in budgets] if kind == "flops" else []
        log = sampler_log(rows, kind)
        names = [f"{budget:.4g}" for budget in budgets]
        if log["step"]:
            drawn["sampler"] = draw_sampler_curves(log, names, f"The sampler of {run.path.name}")
        generator = torch.Generator().manual_seed(0)
        shares = {
            name: {key: value.tolist() for key, value in sampler.chances(budget, DRAWN, generator).items()}
            for name, budget in zip(names, budgets, strict=True)
        }
        drawn["policy"] = draw_policy(shares, sampler.space, f"What the sampler chooses by budget ({kind})")
    if sampled:
        drawn["sampled"] = draw_sampled_costs({run.read_config()["strategy"]["name"]: sampled}, anchors, "GFLOPs")
    for name, drawing in drawn.items():
        save_figure(drawing, target / f"{name}.png")
    return [target / f"{name}.png" for name in drawn]


def logged(run: Path) -> list[dict[str, str]]:
    """The rows of csv/metrics.csv.

    Raises:
        UserError: the run logged nothing.
    """
    path = run / "csv" / "metrics.csv"
    if not path.is_file():
        raise UserError(f"no logged values at {path}: the run has made no step")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sampler_log(rows: list[dict[str, str]], kind: str) -> dict[str, list[float]]:
    """The sampler's updates as `draw_sampler_curves` takes them: an entry for each anchor that an update saw."""
    log: dict[str, list[float]] = {name: [] for name in ("step", "anchor", "reward", "entropy", "feasible", "distance")}
    prefix = f"sampler/reward_{kind}_"
    for row in rows:
        for column, value in row.items():
            if column.startswith(prefix) and value:
                log["step"].append(float(row["step"]))
                log["anchor"].append(float(column.removeprefix(prefix)))
                log["reward"].append(float(value))
                for name in ("entropy", "feasible", "distance"):
                    log[name].append(float(row[f"sampler/{name}"]))
    return log
