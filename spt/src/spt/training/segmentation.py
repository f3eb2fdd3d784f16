"""A run on ADE20K from its options to its result: load, measure, allocate, tune, evaluate, save the delta."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from paperkit.data.resumable import seed_generators
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank
from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import print_metrics
from paperkit.training.switches import apply
from spt.method.sensitivity import Sensitivities, measure_sensitivities, model_identity
from spt.method.tuning import count_trained
from spt.models.backbones import load_backbone
from spt.models.setr import SETR, create_setr, segmentation_loss
from spt.training.ade20k import SceneData
from spt.training.lists import make_trainer, prepare_in, save_tuned, say_what_is_trained
from spt.training.methods import HEAD, Tuned, fixed_parameters
from spt.training.segmentation_module import SegmentationModule
from spt.training.segmentation_recipe import SegmentationOptions


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
        load_backbone(model, options.backbone.file, options.backbone.format, options.backbone.trust_pickle)
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

    tuned = prepare_in(folder, model, options.method, measure, options.trainer)
    apply(tuned.model, options.savings)
    return data, tuned, identity


def segmentation_trainer(options: SegmentationOptions, folder: Path, images: int, **more: Any) -> pl.Trainer:
    """Lightning's Trainer by steps; evaluation at the end of the epoch that passes ``eval_every`` steps."""
    keeper = ModelCheckpoint(
        folder / "checkpoints", save_last=True, save_top_k=0, every_n_train_steps=options.recipe.save_every
    )
    chosen = {**options.trainer, **more}
    world = max(1, _count(chosen.get("devices")) * _count(chosen.get("num_nodes")))
    steps = max(1, images // (options.recipe.batch_size * world))  # of an epoch
    return make_trainer(
        chosen,
        folder,
        options.recipe.seed,
        [keeper],
        max_steps=options.recipe.steps,
        max_epochs=-1,
        check_val_every_n_epoch=max(1, options.recipe.eval_every // steps),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def train_run(options: SegmentationOptions, run: RunFolder, resume: bool) -> None:
    """Tunes and writes delta, metrics.json and the last checkpoint."""
    start = time.monotonic()
    data, tuned, identity = build(options, run.path)
    if process_rank() == 0:
        say_what_is_trained(run.path, tuned)
    assert isinstance(tuned.model, SETR)
    module = SegmentationModule(tuned.model, options.recipe, options.data)
    trainer = segmentation_trainer(options, run.path, len(data.train))
    last = run.path / "checkpoints" / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if resume and last.is_file() else None)
    if not module.history or module.history[-1]["step"] < options.recipe.steps:
        trainer.validate(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        save_tuned(run.path / "delta", tuned, options, identity, options.data.classes, "ade20k", options.data.size)
        report(options, tuned, module, run, "spt train", time.monotonic() - start)
        run.mark_finished()


def evaluate_run(options: SegmentationOptions, folder: RunFolder) -> None:
    """Evaluates the last checkpoint again and writes metrics.json."""
    from paperkit.files.weights import read_checkpoint

    start, last = time.monotonic(), folder.path / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise UserError(f"{folder.path} has no checkpoint at {last}")
    data, tuned, _ = build(options, folder.path)
    assert isinstance(tuned.model, SETR)
    module = SegmentationModule(tuned.model, options.recipe, options.data)
    content = read_checkpoint(last)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=False)
    trainer = segmentation_trainer(options, folder.path, len(data.train), devices=1)
    trainer.validate(module, datamodule=data, verbose=False)
    report(options, tuned, module, folder, "spt eval", time.monotonic() - start)


def report(
    options: SegmentationOptions, tuned: Tuned, module: SegmentationModule, run: RunFolder, command: str, seconds: float
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
    metrics = Metrics("spt", command, [options.recipe.seed], seconds, rows, [], {"history": module.history})
    metrics.write(run.path / "metrics.json")
    print_metrics(metrics, f"{arm} on ADE20K with SETR-PUP")
