"""A run on real data from its options to its result: load, measure, allocate, tune, evaluate, save the delta."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from paperkit.atomic_checkpoint_io import AtomicCheckpointIO
from paperkit.checkpoints import save_weights
from paperkit.errors import UserError
from paperkit.guard import SaveOnSignal, StopOnNaN
from paperkit.metrics import Metrics, Row
from paperkit.report import print_metrics
from paperkit.resumable import SeedStep, seed_generators
from paperkit.runs import RunFolder, process_rank

from .backbones import create_backbone, load_backbone
from .delta import save_delta, take_delta
from .list_data import ListData
from .methods import HEAD, Tuned, fixed_parameters, prepare_method
from .recipe import BackboneOptions, DataOptions, MethodOptions, RecipeOptions
from .sensitivity import model_identity, reset_head
from .sensitivity_file import load_sensitivities, save_sensitivities
from .tuning import count_trained
from .tuning_module import TuningModule


@dataclass
class RealOptions:
    """All options of a run on real data; ``trainer`` goes to Lightning's Trainer as it is."""

    data: DataOptions = field(default_factory=DataOptions)
    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
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
    kept = folder / "sensitivities.safetensors" if folder else None
    if kept and options.method.name == "spt" and not options.method.selection and not options.method.sensitivities:
        if process_rank() == 0 and not kept.is_file():
            device = (
                "cuda" if torch.cuda.is_available() and options.trainer.get("accelerator", "auto") != "cpu" else "cpu"
            )
            save_sensitivities(kept, _measure(model.to(device), options, data))
            model.to("cpu")
        _wait_for(kept)
        measured = load_sensitivities(kept)
        tuned = prepare_method(model, _with_file(options.method, kept), [], options.recipe.seed)
        tuned.sensitivities = measured
        return data, tuned, identity
    batches = data.sensitivity_batches(options.method.sensitivity_batches)
    return data, prepare_method(model, options.method, batches, options.recipe.seed), identity


def _measure(model: torch.nn.Module, options: RealOptions, data: ListData) -> Any:
    from .sensitivity import measure_sensitivities

    return measure_sensitivities(
        model,
        data.sensitivity_batches(options.method.sensitivity_batches),
        max_batches=options.method.sensitivity_batches,
        heads=options.method.heads,
        seed=options.recipe.seed,
        head=HEAD,
        fixed=fixed_parameters(model),
    )


def _with_file(method: MethodOptions, file: Path) -> MethodOptions:
    from dataclasses import replace

    return replace(method, sensitivities=str(file))


def _wait_for(file: Path, seconds: float = 3600) -> None:
    """Other processes of a run wait until the first has measured."""
    end = time.monotonic() + seconds
    while not file.is_file():
        if time.monotonic() > end:
            raise UserError(f"the first process did not write {file} within {seconds:.0f} s")
        time.sleep(0.2)


def make_trainer(options: RealOptions, folder: Path, **more: Any) -> pl.Trainer:
    """Lightning's Trainer with this project's saves, guards and evaluation."""
    chosen = {**options.trainer, **more}
    callbacks: list[Any] = [
        ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0, save_on_train_epoch_end=True),
        StopOnNaN(),
        SaveOnSignal(resume=f"spt train --resume {folder}"),
        SeedStep(options.recipe.seed),
        ReleasedEvaluation(options.recipe),
    ]
    if chosen.pop("enable_progress_bar", True):
        callbacks.append(TQDMProgressBar())
    return pl.Trainer(
        max_epochs=options.recipe.epochs,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=chosen.pop("log_every_n_steps", 5),
        use_distributed_sampler=False,
        enable_progress_bar=any(isinstance(callback, TQDMProgressBar) for callback in callbacks),
        default_root_dir=folder,
        **chosen,
    )


def train_run(options: RealOptions, run: RunFolder, resume: bool, command: str = "spt train") -> Metrics:
    """Tunes and writes delta, metrics.json and the last checkpoint; see the module's first line."""
    start = time.monotonic()
    data, tuned, identity = build(options, run.path)
    spent = count_trained(tuned.model, HEAD)
    if process_rank() == 0:
        counted = f"{tuned.selection.describe()}; " if tuned.selection else ""
        print(f"{run.path}: {counted}{spent.trained:,} trained, head {spent.head:,}, of {spent.total:,}", flush=True)
    module = TuningModule(tuned.model, options.recipe, data.classes, list(data.tests))
    trainer = make_trainer(options, run.path)
    last = run.path / "checkpoints" / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if resume and last.is_file() else None)
    metrics = result(options, tuned, module, command, time.monotonic() - start)
    if trainer.is_global_zero:
        save_tuned(run.path / "delta", tuned, options, identity, data.classes)
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


def save_tuned(folder: Path, tuned: Tuned, options: RealOptions, identity: dict[str, Any], classes: int) -> None:
    """The delta in peft's layout; methods without a selection save their trained tensors alone."""
    if tuned.selection is None:
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Tensor] = {n: p for n, p in tuned.model.named_parameters() if p.requires_grad}
        save_weights(folder / "trained.safetensors", state)
        return
    fixed = fixed_parameters(tuned.model)
    delta = take_delta(tuned.model, tuned.selection.rule, tuned.placement, HEAD, fixed, dict(identity))
    delta.extra = {
        "backbone": {"arch": options.backbone.arch, "sizes": options.backbone.sizes, "img_size": options.data.size}
    }
    delta.extra["classes"] = classes
    delta.extra["task"] = options.data.name
    save_delta(folder, delta)
