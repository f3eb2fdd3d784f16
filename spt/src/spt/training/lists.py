"""A run on real data from its options to its result: load, measure, allocate, tune, evaluate, save the delta."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn

from paperkit.data.resumable import SeedStep, seed_generators
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank
from paperkit.files.weights import save_weights
from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import print_metrics
from paperkit.training.checkpoint_io import AtomicCheckpointIO
from paperkit.training.guard import SaveOnSignal, StopOnNaN
from paperkit.training.savings import Savings
from paperkit.training.switches import apply
from spt.method.sensitivity import (
    Sensitivities,
    load_sensitivities,
    measure_sensitivities,
    model_identity,
    reset_head,
    save_sensitivities,
)
from spt.method.tuning import count_trained
from spt.models.backbones import create_backbone, load_backbone
from spt.models.delta import head_buffers, save_delta, take_delta
from spt.training.list_data import ListData
from spt.training.methods import HEAD, Tuned, fixed_parameters, prepare_method
from spt.training.recipe import BackboneOptions, DataOptions, MethodOptions, RecipeOptions
from spt.training.tuning_module import TuningModule


@dataclass
class RealOptions:
    """All options of a run on real data; ``trainer`` goes to Lightning's Trainer as it is."""

    data: DataOptions = field(default_factory=DataOptions)
    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    savings: Savings = field(default_factory=Savings)
    trainer: dict[str, Any] = field(default_factory=dict)


class ReleasedEvaluation(pl.Callback):
    """Evaluates every ``eval_every`` epochs and in each of the last ten, as released."""

    def __init__(self, recipe: RecipeOptions) -> None:
        self.recipe = recipe

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens or closes this epoch's validation."""
        epoch, last = trainer.current_epoch + 1, self.recipe.epochs
        due = epoch % self.recipe.eval_every == 0 or epoch > last - 10
        trainer.check_val_every_n_epoch = 1 if due else self.recipe.epochs + 1


def build(options: RealOptions, folder: Path | None = None) -> tuple[ListData, Tuned, dict[str, Any]]:
    """Data, the prepared model and the backbone's identity; everything random follows the seed.

    Args:
        folder: run folder; measured sensitivities are kept there, and a resumed run, or another process of the run,
            uses them.
    """
    seed_generators(options.recipe.seed)
    data = ListData(options.data, options.recipe.batch_size, options.recipe.eval_batch_size, options.recipe.seed)
    sizes = dict(options.backbone.sizes or {})
    if options.data.size != 224:
        sizes["img_size"] = options.data.size
    model = create_backbone(options.backbone.arch, data.classes, options.backbone.drop_path, **sizes)
    if options.backbone.file:
        load_backbone(model, options.backbone.file, options.backbone.format, options.backbone.trust_pickle)
        seed_generators(options.recipe.seed)
        reset_head(model)
    identity = model_identity(model, HEAD)

    def measure(device: str) -> Sensitivities:
        return measure_sensitivities(
            model.to(device),
            data.sensitivity_batches(options.method.sensitivity_batches),
            max_batches=options.method.sensitivity_batches,
            heads=options.method.heads,
            seed=options.recipe.seed,
            head=HEAD,
            fixed=fixed_parameters(model),
        )

    tuned = prepare_in(folder, model, options.method, measure, options.trainer)
    apply(tuned.model, options.savings)
    return data, tuned, identity


def prepare_in(
    folder: Path | None,
    model: nn.Module,
    method: MethodOptions,
    measure: Callable[[str], Sensitivities],
    trainer: dict[str, Any],
) -> Tuned:
    """Applies the method; sensitivities that must be measured are measured once in a run folder, by its first process.

    Args:
        measure: the pass on a device (``cpu`` or ``cuda``).
        trainer: options of the Trainer, which say whether a GPU may be used.
    """
    if method.name != "spt" or method.selection or method.sensitivities:
        return prepare_method(model, method)
    cuda = torch.cuda.is_available() and trainer.get("accelerator", "auto") != "cpu"
    if folder is None:
        measured = measure("cpu")
    else:
        kept = folder / "sensitivities.safetensors"
        if process_rank() == 0 and not kept.is_file():
            save_sensitivities(kept, measure("cuda" if cuda else "cpu"))
            model.to("cpu")
        _wait_for(kept)
        measured = load_sensitivities(kept)
    return prepare_method(model, method, measured)


def _wait_for(file: Path, seconds: float = 3600) -> None:
    """Other processes of a run wait until the first has measured."""
    end = time.monotonic() + seconds
    while not file.is_file():
        if time.monotonic() > end:
            raise UserError(f"the first process did not write {file} within {seconds:.0f} s")
        time.sleep(0.2)


def make_trainer(
    chosen: dict[str, Any], folder: Path, seed: int, callbacks: Sequence[pl.Callback], **more: Any
) -> pl.Trainer:
    """Lightning's Trainer with this project's saves and guards.

    Args:
        chosen: the user's options of the Trainer.
        callbacks: of the experiment, its checkpoints among them.
        more: the experiment's own options.
    """
    chosen = {**more, **chosen}
    bar = [TQDMProgressBar()] if chosen.pop("enable_progress_bar", True) else []
    guards = [StopOnNaN(), SaveOnSignal(resume=f"spt train --resume {folder}"), SeedStep(seed)]
    return pl.Trainer(
        callbacks=[*callbacks, *guards, *bar],
        plugins=[AtomicCheckpointIO()],
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=chosen.pop("log_every_n_steps", 5),
        use_distributed_sampler=False,
        enable_progress_bar=bool(bar),
        default_root_dir=folder,
        **chosen,
    )


def epoch_trainer(options: RealOptions, folder: Path, **more: Any) -> pl.Trainer:
    """The Trainer of a recipe by epochs, checkpoint and evaluation as released."""
    keeper = ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    callbacks = [keeper, ReleasedEvaluation(options.recipe)]
    epochs = options.recipe.epochs
    return make_trainer({**options.trainer, **more}, folder, options.recipe.seed, callbacks, max_epochs=epochs)


def say_what_is_trained(folder: Path, tuned: Tuned) -> None:
    """One line: counted, really trained, head, of how many."""
    spent = count_trained(tuned.model, HEAD)
    counted = f"{tuned.selection.describe()}; " if tuned.selection else ""
    print(f"{folder}: {counted}{spent.trained:,} trained, head {spent.head:,}, of {spent.total:,}", flush=True)


def train_run(options: RealOptions, run: RunFolder, resume: bool, command: str = "spt train") -> Metrics:
    """Tunes and writes delta, metrics.json and the last checkpoint; see the module's first line."""
    start = time.monotonic()
    data, tuned, identity = build(options, run.path)
    if process_rank() == 0:
        say_what_is_trained(run.path, tuned)
    module = TuningModule(tuned.model, options.recipe, data.classes, list(data.tests))
    trainer = epoch_trainer(options, run.path)
    last = run.path / "checkpoints" / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if resume and last.is_file() else None)
    metrics = result(options, tuned, module, command, time.monotonic() - start)
    if trainer.is_global_zero:
        save_tuned(run.path / "delta", tuned, options, identity, data.classes, options.data.name, options.data.size)
        metrics.write(run.path / "metrics.json")
        print_metrics(metrics, f"{options.method.name} on {options.data.name}")
        run.mark_finished()
    return metrics


def result(options: RealOptions, tuned: Tuned, module: TuningModule, command: str, seconds: float) -> Metrics:
    """The last epoch's accuracy is the result; the maximum over epochs, the released way to report, stands beside
    it."""
    if not module.history:
        raise UserError("the run ended without an evaluation")
    arm, spent = options.method.name, count_trained(tuned.model, HEAD)
    rows = [Row(arm, f"top-1, {name}", [module.history[-1][name]], "%") for name in module.sets]
    rows.append(
        Row(
            arm,
            "official_max (over epochs, chosen on the evaluated set)",
            [max(p[module.sets[0]] for p in module.history)],
            "%",
        )
    )
    if tuned.selection is not None:
        rows.append(Row(arm, "counted parameters", [tuned.selection.counted]))
    rows += [Row(arm, "trained parameters beside the head", [spent.trained]), Row(arm, "head parameters", [spent.head])]
    extra = {"history": module.history, "task": options.data.name, "final": options.data.final}
    return Metrics("spt", command, [options.recipe.seed], seconds, rows, [], extra)


def save_tuned(
    folder: Path, tuned: Tuned, options: Any, identity: dict[str, Any], classes: int, task: str, size: int
) -> None:
    """The delta in peft's layout; methods without a selection save their trained tensors and the head's statistics."""
    if tuned.selection is None:
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Tensor] = {n: p for n, p in tuned.model.named_parameters() if p.requires_grad}
        save_weights(folder / "trained.safetensors", {**state, **head_buffers(tuned.model)})
        return
    fixed = fixed_parameters(tuned.model)
    delta = take_delta(tuned.model, tuned.selection.rule, tuned.placement, HEAD, fixed, dict(identity))
    backbone = {"arch": options.backbone.arch, "sizes": options.backbone.sizes, "img_size": size}
    delta.extra = {"backbone": backbone, "classes": classes, "task": task}
    save_delta(folder, delta)
