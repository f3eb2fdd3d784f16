"""Tune SETR-PUP on ADE20K. The files of spt/configs/segmentation hold the rows of the paper's table.

Two files make a run, one of the data and one of a method: `spt train --config spt/configs/segmentation/ade20k.yaml
--config spt/configs/segmentation/methods/spt_lora.yaml --data.root DIR`
"""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from paperkit.data.seeding import seed_generators
from paperkit.files.runs import RunFolder, process_rank
from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import print_metrics
from paperkit.training.switches import apply
from paperkit.training.trainer import fit, make_trainer, trainer_options
from spt.method.sensitivity import Sensitivities, measure_sensitivities, model_identity
from spt.method.tuning import count_trained
from spt.models.setr import SETR, create_setr, segmentation_loss
from spt.training import lists
from spt.training.ade20k import SceneData
from spt.training.methods import HEAD, Tuned, fixed_parameters
from spt.training.segmentation_module import SegmentationModule
from spt.training.segmentation_recipe import SceneOptions, SegmentationOptions, SegmentationRecipe


def add_arguments(parser: Any) -> None:
    """Options by group; a config file holds the same groups."""
    lists.add_groups(parser, SceneOptions, SegmentationRecipe)


check = lists.check
figures = lists.figures


def train(run: RunFolder, options: Any, resuming: bool) -> None:
    """One run, new or continued: writes the delta, metrics.json and the last checkpoint."""
    start, given = time.monotonic(), read_options(options)
    data, tuned, identity = build(given, run.path)
    if process_rank() == 0:
        lists.say_what_is_trained(run.path, tuned)
    assert isinstance(tuned.model, SETR)
    module = SegmentationModule(tuned.model, given.recipe, given.data)
    trainer = step_trainer(given, run.path, len(data.train))
    fit(trainer, module, data, resuming)
    if not module.history or module.history[-1]["step"] < given.recipe.steps:
        trainer.validate(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        size, classes = given.data.size, given.data.classes
        lists.save_tuned(run.path / "delta", tuned, given, identity, classes, "ade20k", size)
        report(given, tuned, module, run.path, time.monotonic() - start)


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Evaluates the checkpoint of a run again and writes metrics.json."""
    start, given = time.monotonic(), read_options(options)
    folder, last = lists.checkpoint_of(run, options.ckpt)
    data, tuned, _ = build(given, folder.path)
    assert isinstance(tuned.model, SETR)
    module = SegmentationModule(tuned.model, given.recipe, given.data)
    lists.load_checkpoint(module, last, options.trust_pickle)
    trainer = step_trainer(given, folder.path, len(data.train), **lists.on_one_device(options.device))
    earlier = list(module.history)
    trainer.validate(module, datamodule=data, verbose=False)
    point = {**module.history[-1], "step": float(given.recipe.steps)}
    module.history = [*(kept for kept in earlier if kept["step"] < point["step"]), point]
    report(given, tuned, module, Path(options.output), time.monotonic() - start)


def read_options(options: Any) -> SegmentationOptions:
    """The options of the command line as one object."""
    groups = {name: getattr(options, name) for name in ("data", "backbone", "method", "recipe", "savings")}
    return SegmentationOptions(**groups, trainer=trainer_options(options.trainer))


def build(options: SegmentationOptions, folder: Path | None = None) -> tuple[SceneData, Tuned, dict[str, Any]]:
    """Data, the prepared SETR and the trunk's identity; everything random follows the seed."""
    recipe = options.recipe
    data = SceneData(options.data, recipe.batch_size, recipe.seed)
    seed_generators(recipe.seed)
    sizes = dict(options.backbone.sizes or {})
    model = create_setr(
        options.backbone.arch, options.data.classes, options.data.size, options.backbone.drop_path, **sizes
    )
    if options.backbone.file:
        lists.load_backbone_of(model, options.backbone)
    identity = model_identity(model, HEAD)

    def measure(device: str) -> Sensitivities:
        return measure_sensitivities(
            model.to(device),
            data.sensitivity_batches(recipe.sensitivity_batch),
            max_batches=options.method.sensitivity_batches,
            loss=segmentation_loss,  # type: ignore[arg-type]  # of the list that SETR gives in training
            heads=options.method.heads,
            seed=recipe.seed,
            head=HEAD,
            fixed=fixed_parameters(model),
        )

    images = lists.first_images(data.for_sensitivity)
    tuned = lists.prepare_in(folder, model, options.method, measure, options.trainer, images)
    apply(tuned.model, options.savings)
    return data, tuned, identity


def step_trainer(options: SegmentationOptions, folder: Path, images: int, **more: Any) -> pl.Trainer:
    """The Trainer of a recipe by steps; evaluation at the end of the epoch that passes `eval_every` steps.

    Args:
        images: of the training part.
        more: what goes over the user's options of the Trainer.
    """
    chosen = {**options.trainer, **more}
    world = max(1, _count(chosen.get("devices")) * _count(chosen.get("num_nodes")))
    steps = max(1, images // (options.recipe.batch_size * world))  # of an epoch
    return make_trainer(
        folder,
        chosen,
        options.recipe.seed,
        resume_with=f"spt train --resume {folder}",
        save_every=options.recipe.save_every,
        max_steps=options.recipe.steps,
        max_epochs=-1,
        log_every_n_steps=lists.LOG_EVERY,
        check_val_every_n_epoch=max(1, options.recipe.eval_every // steps),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def report(
    options: SegmentationOptions, tuned: Tuned, module: SegmentationModule, folder: Path, seconds: float
) -> None:
    """metrics.json and the table: mIoU of the last step, and what was spent."""
    arm, spent = options.method.name, count_trained(tuned.model, HEAD)
    scale = "single scale" if options.data.scales == [1.0] and not options.data.flip else "multi-scale"
    rows = [Row(arm, f"mIoU, validation, {scale}", [module.history[-1]["miou"]], "%")]
    if tuned.selection is not None:
        rows.append(Row(arm, "counted parameters", [tuned.selection.counted]))
    rows += [
        Row(arm, "trained parameters beside the heads", [spent.trained]),
        Row(arm, "head parameters", [spent.head]),
    ]
    metrics = Metrics("spt", [options.recipe.seed], seconds, rows, extra={"history": module.history})
    metrics.write(folder / "metrics.json")
    print_metrics(metrics, f"{arm} on ADE20K with SETR-PUP")
