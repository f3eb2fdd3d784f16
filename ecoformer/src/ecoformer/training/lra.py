"""Train a small encoder on a task of the Long Range Arena: full softmax, Performer, EcoFormer and others as arms.

Options: --data.* the task and its data, --network.* the encoder and its attention, --hash.* the codes and their fit,
--recipe.* optimiser, schedule and length, --savings.* and --ema.* the survey's savings, --trainer.* the Trainer.

A run leaves `model/` (last weights) and `best/` (highest validation accuracy). The accuracy of the last on the test
split stands in metrics.json beside the rate of the commonest class: these tasks are skewed.
"""

import csv
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ecoformer.figures.sequences import draw_attention_maps, draw_curves, draw_energy_by_length
from ecoformer.method.attention import ask_for_fit, eco_layers, fit_hashes, start_epoch
from ecoformer.method.energy import Ledger, ledger
from ecoformer.training.encoder import Arm, Encoder
from ecoformer.training.hashing import HashConfig, check_switches, fit_ahead
from ecoformer.training.nan_layer import naming_its_layer
from ecoformer.training.sequences import Batches, SequenceData
from paperkit.command.engines import device
from paperkit.data.resumable import Draw
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank, weights_of
from paperkit.results.metrics import Metrics
from paperkit.results.record import Costs, record, told
from paperkit.results.report import save_figure
from paperkit.training.optim import OptimConfig, build
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

REFUSED = {
    "patch_drop": "an encoder of sequences is no plain ViT",
    "channels_last": "a sequence has no feature maps",
    "attention": "each layer chooses its own way; hash.backend sets that of the EcoFormer layers",
}


@dataclass
class EncoderConfig:
    """The encoder; see `ecoformer.training.encoder.Encoder`. The defaults are the arena's for ListOps.

    Args:
        attention: transformer, shared_qk, performer, elu, ecoformer.
        layers, heads: how many. dim, inner, mlp: widths of tokens, of queries, keys and values, of the MLP.
        dropout: everywhere but on attention. pooling: cls or mean. positions: fixed or learned.
    """

    attention: Arm = "ecoformer"
    layers: int = 4
    heads: int = 8
    dim: int = 512
    inner: int = 512
    mlp: int = 1024
    dropout: float = 0.1
    pooling: Literal["cls", "mean"] = "cls"
    positions: Literal["fixed", "learned"] = "fixed"


@dataclass
class SequenceRecipe:
    """Optimiser, schedule and length of a run; the defaults are the arena's for ListOps.

    Args:
        lr: rate, before the schedule's factor.
        schedule: `rsqrt` (linear warm-up, then 1 / sqrt(step); at its top lr / sqrt(warm-up)) or `cosine`.
        warmup_steps: of the linear rise. warmup_epochs: the same in epochs, in its place.
        weight_decay: of all weights, as the arena's optimiser does.
        betas, eps: of Adam. optimizer: any of timm's.
        steps: length of the run. epochs: the same in epochs, in its place.
        refit_steps: optimiser steps before which the hash is fitted again (the first batch always fits it).
    """

    lr: float = 0.05
    schedule: Literal["rsqrt", "cosine"] = "rsqrt"
    warmup_steps: int | None = 1000
    warmup_epochs: float | None = None
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    optimizer: str = "adamw"
    steps: int | None = 5000
    epochs: int | None = None
    refit_steps: list[int] = field(default_factory=list)

    def check(self) -> None:
        """Refuse a length or a warm-up that is not one.

        Raises:
            UserError: both or neither given, or numbers out of range.
        """
        for one, two in (("steps", "epochs"), ("warmup_steps", "warmup_epochs")):
            a, b = getattr(self, one), getattr(self, two)
            if (a is None) == (b is None):
                told = f"{one} {a} and {two} {b}"
                raise UserError(f"recipe.{told}: give one of them (set the other to null)")
        if min(self.steps or 1, self.epochs or 1) < 1 or self.lr <= 0:
            raise UserError(f"recipe: lr {self.lr}, steps {self.steps}, epochs {self.epochs} must be above 0")
        if min(self.warmup_steps or 0, self.warmup_epochs or 0, *self.refit_steps, 0) < 0:
            raise UserError("recipe: warm-up and refit_steps must not be negative")

    def factor(self, step: int, warmup: int, total: int) -> float:
        """What `lr` is multiplied by in step 0, 1, ..."""
        rise = min(1.0, step / warmup) if warmup else 1.0
        if self.schedule == "rsqrt":
            return rise / math.sqrt(max(step, warmup, 1))
        progress = max(0.0, (step - warmup) / max(1, total))
        return rise * max(0.0, 0.5 * (1 + math.cos(math.pi * (progress % 1.0))))


def build_encoder(config: EncoderConfig, hash_: HashConfig, data: SequenceData) -> Encoder:
    """The encoder for the task of `data`."""
    own = hash_.options() if config.attention == "ecoformer" else None
    task = data.of_task
    return Encoder(task.vocabulary, task.classes, data.max_length, pair=task.pair, hash_=own, **asdict(config))


class SequenceTraining(pl.LightningModule):
    """One step: cross entropy of the classes; the first batch fits the hashes, and those of `refit_steps` again."""

    def __init__(
        self,
        network: Encoder,
        recipe: SequenceRecipe,
        steps_per_epoch: int,
        classes: int,
        savings: Savings | None = None,
    ) -> None:
        super().__init__()
        self.network, self.recipe, self.savings = network, recipe, savings or Savings()
        self.total = recipe.steps or recipe.epochs * steps_per_epoch  # type: ignore[operator]
        self.warmup = recipe.warmup_steps or round((recipe.warmup_epochs or 0) * steps_per_epoch)
        self.accuracy = accuracy_of(classes, "val/")
        self.last: Tensor | None = None  # tokens of the step under way, to say where a NaN arose

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, K)."""
        return self.network(tokens)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Asks for a fit before the first of the batches that one optimiser step accumulates."""
        if self.global_step in self.recipe.refit_steps and batch_idx % self.trainer.accumulate_grad_batches == 0:
            ask_for_fit(self.network)
        start_epoch(self.network, self.current_epoch)  # lets a fit happen in the pass of `hardest`, in eval mode

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        self.last = batch[0]
        tokens, labels = hardest(self.network, self.losses, *batch, self.savings)
        fit_ahead(self.network, tokens, self.savings)
        loss = F.cross_entropy(self.network(tokens), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def losses(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Loss of each sample (B,), by which `keep_hardest` ranks them."""
        return F.cross_entropy(self.network(tokens), labels, reduction="none")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.accuracy.update(self.network(batch[0]), batch[1])
        self.log_dict(self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        adam = "adam" in recipe.optimizer
        config = OptimConfig(
            name=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            betas=recipe.betas if adam else None,
            eps=recipe.eps if adam else None,
            schedule="constant",
        )
        groups = [{"params": [p for p in self.network.parameters() if p.requires_grad]}]
        optimizer = sharpened(build(groups, config, 1, 1)[0], self.savings)
        # Lambda functions are not saved: a resumed run computes the same values from its step.
        curve = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: recipe.factor(t, self.warmup, self.total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": curve, "interval": "step"}}


def accuracy_of(classes: int, prefix: str) -> MetricCollection:
    """`{prefix}acc1`, the share of all samples; collected over processes."""
    return MetricCollection({"acc1": MulticlassAccuracy(classes, average="micro")}, prefix=prefix)


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--training_seed", type=int, default=0, help="initial weights, fit and dropout")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    kinds = {"data": SequenceData, "network": EncoderConfig, "hash": HashConfig, "recipe": SequenceRecipe,
             "savings": Savings, "ema": EMA}  # fmt: skip
    for name, kind in kinds.items():
        parser.add_class_arguments(kind, name)
    # Sequences of a batch may be shorter than the supports are many; ours, the paper's code for them is not public.
    parser.set_defaults({"hash.supports_from": "batch"})
    add_trainer_options(parser, skip=("max_steps",), also=("val_check_interval",))


def add_evaluation_arguments(parser: Any) -> None:
    """What an evaluation does besides."""
    parser.add_argument("--split", type=Literal["test", "val"], default="test", help="which samples")
    parser.add_argument("--fit-hash", action="store_true", help="fit hashes that never were, on a training batch")


def check(options: Any, run: RunFolder | None) -> None:
    """Refuse what cannot be trained, and data that are missing or broken, before there is a run folder.

    Raises:
        UserError: the first of what does not fit.
    """
    options.recipe.check()
    if options.network.attention == "ecoformer":
        options.hash.check()
        later = [step for step in options.recipe.refit_steps if step]
        check_switches(options.savings, options.ema, f"recipe.refit_steps {later}" if later else "")
        shortest = options.data.max_length + (options.network.pooling == "cls")
        options.hash.check_tokens(shortest, f"a sequence of data.max_length {options.data.max_length}")
    check_savings(options.savings, trainer_options(options.trainer), ema=options.ema, refused=REFUSED)
    with torch.device("meta"):
        model = build_encoder(options.network, options.hash, options.data)
        apply(model, replace(options.savings, compile=False))
    if options.data.source == "files":
        options.data.setup()


def train(run: RunFolder, options: Any, resuming: bool) -> SequenceTraining:
    """Train to the end, or from the last checkpoint; then write `model/`, `best/` and the test accuracy."""
    start, data, recipe, seed = time.monotonic(), options.data, options.recipe, options.training_seed
    given = trainer_options(options.trainer)
    length = {"max_steps": recipe.steps or -1, "max_epochs": recipe.epochs or -1}
    trainer = make_trainer(
        run.path,
        {**given, **length},
        seed,
        resume_with=f"ecoformer train --resume {run.path}",
        save_every=options.save_every,
        best="val/acc1",
        averaging=callbacks(options.ema),
        csv=True,
    )
    data.trainer = trainer
    data.setup()
    pl.seed_everything(seed, workers=False, verbose=False)
    model = build_encoder(options.network, options.hash, data)
    apply(model, options.savings)
    steps = max(1, -(-data.steps_per_epoch // trainer.accumulate_grad_batches))
    training = SequenceTraining(model, recipe, steps, data.of_task.classes, options.savings)
    with naming_its_layer(model, lambda: training.last):
        fit(trainer, training, data, resuming)
    if process_rank() == 0:
        model = training.network.cpu()
        save_last_and_best(model, run.path)
        place = device("cpu" if given.get("accelerator") == "cpu" else "auto")
        found = {key: 100 * v for key, v in last_evaluation(trainer).items() if key.startswith("val/")}
        report(model, data, "test", place, options, run.path, start, found)
        print(f"{run.path}: model/ (last), best/ (highest validation accuracy), metrics.json")
    return training


@torch.no_grad()
def share_right(model: Encoder, data: SequenceData, split: str, on: torch.device) -> float:
    """Accuracy on a split, in %."""
    model = model.to(on).eval()
    right = total = 0
    for tokens, labels in track(data.alone(split), f"{split} split", transient=True):
        right += int((model(tokens.to(on)).argmax(1).cpu() == labels).sum())
        total += len(labels)
    return 100 * right / total


def report(
    model: Encoder,
    data: SequenceData,
    split: str,
    on: torch.device,
    options: Any,
    folder: Path,
    start: float,
    found: dict[str, float] | None = None,
) -> None:
    """Print and record accuracy, majority rate and the energy of attention for the longest sequence."""
    found = dict(found or {})
    found[f"{split}/acc1"] = share_right(model, data, split, on)
    found[f"{split}/majority"] = 100 * data.majority_rate(split)
    energy: Costs = ()
    if model.attention != "elu":
        book = energy_book(model.cpu())
        softmax = sum(layer.softmax.energy_pj() for layer in book.layers)
        energies = {"attention energy": book.attention.energy_pj(), "softmax energy": softmax}
        energy = [(name, pj / 1e9, "G pJ") for name, pj in energies.items()]
    told(f"{data.task}, {model.attention}", found, energy)
    extra = {"task": data.task, "attention": model.attention, "recipe": asdict(options.recipe)}
    seconds = time.monotonic() - start
    record(folder, "ecoformer", model.attention, found, options.training_seed, seconds, energy, extra)


def energy_book(model: Encoder) -> Ledger:
    """The ledger of one sequence (or pair) of full length; elu's linear attention is no kind that it knows."""
    shape = (1, 2, model.max_length) if model.pair else (1, model.max_length)
    return ledger(model, inputs=(torch.ones(shape, dtype=torch.long, device="meta"),))


def load_encoder(folder: Path) -> Encoder:
    """An encoder from a folder of save_pretrained.

    Raises:
        UserError: it is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of weights; name a finished run, or its model/ or best/")
    return Encoder.from_pretrained(folder)


def evaluate(run: RunFolder | None, options: Any) -> None:
    """A run's weights, or a folder's, on the test split of the options.

    Raises:
        UserError: nothing named, a foreign folder, a hash that was never fitted.
    """
    start, model, data = time.monotonic(), load_encoder(weights_of(run, options.ckpt)), options.data
    if model.max_length < data.max_length:
        raise UserError(f"data.max_length {data.max_length}, but the encoder takes {model.max_length} tokens at most")
    never = [name for name, layer in eco_layers(model) if not layer.ksh.is_fitted]
    if never and not options.fit_hash:
        raise UserError(
            f"{len(never)} hashes were never fitted ({never[0]}): evaluate fitted weights, or let this command fit "
            "them with --fit-hash"
        )
    if never:
        fit_hashes(model, next(iter(data.alone("train")))[0])
    report(model, data, options.split, device(options.device), options, Path(options.output), start)


def add_figure_arguments(parser: Any) -> None:
    """What the figures show."""
    parser.add_argument("--sample", type=int, default=0, help="of the test split, whose attention is drawn")


def figures(run: RunFolder | None, options: Any) -> list[Path]:
    """Loss and accuracy over the steps, energy by length, and with hashes what the tokens of one sample attend to.

    Raises:
        UserError: no run, an unfinished one, or no such sample.
    """
    if run is None:
        raise UserError(f"{options.run} lies in no run folder of the arena")
    model, config = load_encoder(weights_of(run, None)), run.read_config()
    table = run.path / "csv" / "metrics.csv"
    if not table.is_file():
        raise UserError(f"{table} is missing, which holds the values of the curves; runs of this version write it")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    majority = Metrics.read(run.path / "metrics.json").row(model.attention, "test/majority").mean
    hash_, network = config["hash"], config["network"]
    length = model.max_length + (model.pooling == "cls")
    drawn = {
        "curves": draw_curves(rows, majority, f"{config['data']['task']}, {model.attention}"),
        "energy_by_length": draw_energy_by_length(
            network["inner"], network["heads"], hash_["nbits"], hash_["supports"], length
        ),
    }
    if model.attention == "ecoformer":
        drawn["attention_maps"] = draw_attention_maps(
            *attention_maps(model, SequenceData(**config["data"]), options.sample)
        )
    target = Path(options.output or run.path / "figures")
    for name, picture in drawn.items():
        save_figure(picture, target / f"{name}.png")
    return [target / f"{name}.png" for name in drawn]


@torch.no_grad()
def attention_maps(model: Encoder, data: SequenceData, sample: int) -> tuple[dict[str, Tensor], str]:
    """(layer -> `h_i . h_j + c`, mean over its heads, of one test sample; what the picture shows, in words).

    Of a pair of texts the first one's.

    Raises:
        UserError: no such sample.
    """
    rows = data.split("test")
    if not 0 <= sample < len(rows.labels):
        raise UserError(f"--sample {sample} is none of the {len(rows.labels)} test samples, counted from 0")
    tokens, labels = Batches(rows, data.max_length)[[Draw(0, sample)]]
    maps: dict[str, Tensor] = {}

    def keep(name: str, bias: float) -> Any:
        def hook(module: Any, args: Any, codes: Tensor) -> None:
            maps[name] = (codes[0] @ codes[0].mT).mean(0).cpu() + bias

        return hook

    hooks = [
        layer.ksh.register_forward_hook(keep(name, layer.fast_attention.bias)) for name, layer in eco_layers(model)
    ]
    answer = int(model.eval()(tokens).argmax())
    for hook in hooks:
        hook.remove()
    title = f"h$_i$·h$_j$ + c, mean over heads, test sample {sample}: class {int(labels)}, answered {answer}"
    return maps, title
