"""Tune a backbone on lists of images: VTAB-1k, FGVC, few-shot. The files of spt/configs hold the paper's recipes.

Two files make a run, one of a data set and one of a method:
`spt train --config spt/configs/vtab/supervised.yaml --config spt/configs/methods/spt_lora.yaml --data.root DIR`
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from paperkit.command import engines
from paperkit.data.seeding import seed_generators
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank
from paperkit.files.weights import read_checkpoint, save_weights
from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import print_metrics
from paperkit.training import savings
from paperkit.training.savings import EMA, Savings
from paperkit.training.switches import apply
from paperkit.training.trainer import add_trainer_options, fit, make_trainer, trainer_options
from spt.figures.of_a_run import draw_run
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
from spt.models.delta import kept_buffers, save_delta, take_delta
from spt.training.list_data import ListData
from spt.training.methods import HEAD, Tuned, fixed_parameters, prepare_method
from spt.training.recipe import BackboneOptions, DataOptions, MethodOptions, RecipeOptions
from spt.training.tuning_module import TuningModule

# What the method itself cannot take; the rest of the survey's switches is the user's choice.
REFUSED = {
    "patch_drop": "sensitivities are measured on all tokens, and training on fewer would follow other ones",
    "keep_hardest": "sensitivities are measured on all images, and the hardest ones have other ones",
    "sam_rho": "flatness is sought over the few tuned parameters only, at the price of a second pass",
    "compile": "entries are written into the frozen weights for each product and taken out again",
    "channels_last": "what is tuned are the Linears of blocks; convolutions stay frozen",
}
# Of Lightning's Trainer the recipes decide these.
DECIDED = ("check_val_every_n_epoch", "max_steps")
LOG_EVERY = 5  # steps between two logged losses: an epoch of VTAB-1k has 16


@dataclass
class ListOptions:
    """All options of a run on lists of images; `trainer` goes to Lightning's Trainer."""

    data: DataOptions = field(default_factory=DataOptions)
    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    savings: Savings = field(default_factory=Savings)
    trainer: dict[str, Any] = field(default_factory=dict)


# --- the engine --------------------------------------------------------------------------------------------------


def add_arguments(parser: Any) -> None:
    """Options by group; a config file holds the same groups."""
    add_groups(parser, DataOptions, RecipeOptions)


def add_groups(parser: Any, data: type, recipe: type) -> None:
    """The groups `data`, `backbone`, `method`, `recipe`, `savings`, `ema` and `trainer`."""
    groups = {"data": data, "backbone": BackboneOptions, "method": MethodOptions, "recipe": recipe}
    for name, kind in {**groups, "savings": Savings, "ema": EMA}.items():
        parser.add_class_arguments(kind, name)
    add_trainer_options(parser, skip=DECIDED)


def check(options: Any, run: RunFolder | None) -> None:
    """Refuses savings that cannot be, before there is a run folder.

    Raises:
        UserError: naming the switch and the reason.
    """
    if options.ema.decay is not None:
        raise UserError(
            f"ema.decay {options.ema.decay} is not for this method: its checkpoints hold the tuned tensors alone"
        )
    savings.check(options.savings, trainer_options(options.trainer), refused=REFUSED)


def train(run: RunFolder, options: Any, resuming: bool) -> None:
    """One run, new or continued."""
    train_run(read_options(options), run, resuming)


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Evaluates the checkpoint of a run again and writes metrics.json."""
    start, given = time.monotonic(), read_options(options)
    folder, last = checkpoint_of(run, options.ckpt)
    data, tuned, _ = build(given, folder.path)
    module = TuningModule(tuned.model, given.recipe, data.classes, list(data.tests))
    load_checkpoint(module, last, options.trust_pickle)
    earlier = list(module.history)
    trainer = epoch_trainer(given, folder.path, **on_one_device(options.device))
    trainer.validate(module, datamodule=data, verbose=False)
    module.history = [*earlier, {**module.history[-1], "epoch": float(given.recipe.epochs)}]
    metrics = result(given, tuned, module, time.monotonic() - start)
    metrics.write(Path(options.output) / "metrics.json")
    print_metrics(metrics, f"{given.method.name} on {given.data.name}")


def figures(run: RunFolder | None, options: Any) -> list[Path]:
    """Draws the sensitivities, the selection, the budget and the evaluations of a run."""
    if run is None:
        raise UserError(f"{options.run} lies in no run folder")
    return draw_run(run, Path(options.output or run.path / "figures"))


def read_options(options: Any) -> ListOptions:
    """The options of the command line as one object."""
    groups = {name: getattr(options, name) for name in ("data", "backbone", "method", "recipe", "savings")}
    return ListOptions(**groups, trainer=trainer_options(options.trainer))


# --- the run -----------------------------------------------------------------------------------------------------


class ReleasedEvaluation(pl.Callback):
    """Evaluates every `eval_every` epochs and in each of the last ten, as released."""

    def __init__(self, recipe: RecipeOptions) -> None:
        self.recipe = recipe

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As at the start of an epoch, which Lightning does not announce to a run that goes on inside one."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens or closes this epoch's validation."""
        epoch, last = trainer.current_epoch + 1, self.recipe.epochs
        due = epoch % self.recipe.eval_every == 0 or epoch > last - 10
        trainer.check_val_every_n_epoch = 1 if due else self.recipe.epochs + 1


def build(options: ListOptions, folder: Path | None = None) -> tuple[ListData, Tuned, dict[str, Any]]:
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
        load_backbone_of(model, options.backbone)
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

    images = first_images(data.for_sensitivity)
    tuned = prepare_in(folder, model, options.method, measure, options.trainer, images)
    apply(tuned.model, options.savings)
    return data, tuned, identity


def load_backbone_of(model: nn.Module, backbone: BackboneOptions) -> None:
    """Loads the file that the options name; messages name the options as they stand here."""
    trusted, how = backbone.trust_pickle, {"part": "--backbone.part", "trust-pickle": "--backbone.trust_pickle true"}
    load_backbone(model, str(backbone.file), backbone.format, trusted, part=backbone.part, advice=how)


def prepare_in(
    folder: Path | None,
    model: nn.Module,
    method: MethodOptions,
    measure: Callable[[str], Sensitivities],
    trainer: dict[str, Any],
    images: Tensor,
) -> Tuned:
    """Applies the method; sensitivities that must be measured are measured once in a run folder, by its first process.

    Args:
        measure: the pass on a device (`cpu` or `cuda`).
        trainer: options of the Trainer, which say whether a GPU may be used.
        images: two of the task, to see that all that is counted gets a gradient.
    """
    if method.name != "spt" or method.selection or method.sensitivities:
        return prepare_method(model, method, images=images)
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
    return prepare_method(model, method, measured, images)


def first_images(data: Any, count: int = 2) -> Tensor:
    """(B, 3, H, W), read in this process and without a random number."""
    return torch.stack([data[index][0] for index in range(min(count, len(data)))])


def _wait_for(file: Path, seconds: float = 3600) -> None:
    """Other processes of a run wait until the first has measured."""
    end = time.monotonic() + seconds
    while not file.is_file():
        if time.monotonic() > end:
            raise UserError(f"the first process did not write {file} within {seconds:.0f} s")
        time.sleep(0.2)


def epoch_trainer(options: ListOptions, folder: Path, **more: Any) -> pl.Trainer:
    """The Trainer of a recipe by epochs, checkpoint and evaluation as released.

    Args:
        more: what goes over the user's options of the Trainer.
    """
    return make_trainer(
        folder,
        {**options.trainer, **more},
        options.recipe.seed,
        resume_with=f"spt train --resume {folder}",
        callbacks=[ReleasedEvaluation(options.recipe)],
        max_epochs=options.recipe.epochs,
        log_every_n_steps=LOG_EVERY,
    )


def on_one_device(name: str) -> dict[str, Any]:
    """The Trainer's options for an evaluation on the device of `--device`; the run's curves stay as they are."""
    device = engines.device(name)
    where: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
    if device.type != "cpu":
        where = {"accelerator": "gpu", "devices": [device.index or 0]}
    return {**where, "num_nodes": 1, "strategy": "auto", "logger": False}


def checkpoint_of(run: RunFolder | None, ckpt: str | None) -> tuple[RunFolder, Path]:
    """The run that is evaluated, and its checkpoint: the last one, or the file that `--ckpt` names.

    Raises:
        UserError: if there is no run, or no checkpoint in it.
    """
    if run is None:
        what = ckpt or "nothing"
        raise UserError(f"{what} lies in no run folder; name the run with --ckpt, or use `spt predict` for a delta")
    last = Path(ckpt) if ckpt and Path(ckpt).is_file() else run.path / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise UserError(f"{run.path} has no checkpoint at {last}")
    return run, last


def load_checkpoint(module: pl.LightningModule, file: Path, trust_pickle: bool) -> None:
    """Trained tensors and history of a checkpoint, which the module checks."""
    content = read_checkpoint(file, trust_pickle)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=False)


def say_what_is_trained(folder: Path, tuned: Tuned) -> None:
    """One line: counted, really trained, head, of how many."""
    spent = count_trained(tuned.model, HEAD)
    counted = f"{tuned.selection.describe()}; " if tuned.selection else ""
    print(f"{folder}: {counted}{spent.trained:,} trained, head {spent.head:,}, of {spent.total:,}", flush=True)


def train_run(options: ListOptions, run: RunFolder, resume: bool) -> Metrics:
    """Load, measure, allocate, tune, evaluate; writes the delta, metrics.json and the last checkpoint."""
    start = time.monotonic()
    data, tuned, identity = build(options, run.path)
    if process_rank() == 0:
        say_what_is_trained(run.path, tuned)
    module = TuningModule(tuned.model, options.recipe, data.classes, list(data.tests))
    trainer = epoch_trainer(options, run.path)
    fit(trainer, module, data, resume)
    metrics = result(options, tuned, module, time.monotonic() - start)
    if trainer.is_global_zero:
        save_tuned(run.path / "delta", tuned, options, identity, data.classes, options.data.name, options.data.size)
        metrics.write(run.path / "metrics.json")
        print_metrics(metrics, f"{options.method.name} on {options.data.name}")
    return metrics


def result(options: ListOptions, tuned: Tuned, module: TuningModule, seconds: float) -> Metrics:
    """The last epoch's accuracy is the result; the maximum over epochs, as released, stands beside it."""
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
    return Metrics("spt", [options.recipe.seed], seconds, rows, extra=extra)


def save_tuned(
    folder: Path, tuned: Tuned, options: Any, identity: dict[str, Any], classes: int, task: str, size: int
) -> None:
    """The delta in peft's layout; methods without a selection save their trained tensors and all statistics."""
    if tuned.selection is None:
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Tensor] = {n: p for n, p in tuned.model.named_parameters() if p.requires_grad}
        save_weights(folder / "trained.safetensors", {**state, **kept_buffers(tuned.model)})
        return
    fixed = fixed_parameters(tuned.model)
    delta = take_delta(tuned.model, tuned.selection.rule, tuned.placement, HEAD, fixed, dict(identity), tuned.buffers)
    backbone = {"arch": options.backbone.arch, "sizes": options.backbone.sizes, "img_size": size}
    delta.extra = {"backbone": backbone, "classes": classes, "task": task}
    save_delta(folder, delta)
