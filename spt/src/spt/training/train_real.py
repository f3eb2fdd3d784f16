"""Tune a backbone on real data: VTAB-1k, FGVC, few-shot. The configs under spt/configs hold the paper's recipes.

`--trainer.KEY VALUE` goes to Lightning's Trainer: devices, num_nodes, strategy, precision, accelerator, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from paperkit.command.cli import make_parser
from paperkit.command.run_options import add_run_options, find_run
from paperkit.errors import UserError
from paperkit.training.savings import EMA, Savings, check

if TYPE_CHECKING:
    from paperkit.files.runs import RunFolder
    from spt.training.lists import RealOptions

# What of Lightning's Trainer a user may set; the rest is the recipe's or this project's own.
TRAINER = {
    **{"accelerator": str, "devices": str, "num_nodes": int, "strategy": str, "precision": str},
    **{"accumulate_grad_batches": int, "deterministic": bool, "enable_progress_bar": bool, "log_every_n_steps": int},
    **{"limit_train_batches": int, "limit_val_batches": int, "gradient_clip_val": float, "sync_batchnorm": bool},
}
# What the method itself cannot take; the rest of the survey's switches is the user's choice.
REFUSED = {
    "patch_drop": "sensitivities are measured on all tokens, and training on fewer would follow other ones",
    "keep_hardest": "sensitivities are measured on all images, and the hardest ones have other ones",
    "sam_rho": "flatness is sought over the few tuned parameters only, at the price of a second pass",
    "compile": "entries are written into the frozen weights for each product and taken out again",
    "channels_last": "what is tuned are the Linears of blocks; convolutions stay frozen",
}


def main(argv: Sequence[str], prog: str) -> None:
    """Parses and runs."""
    parser = make_parser(prog, __doc__)
    add_arguments(parser)
    run(parser.parse_args(list(argv)))


def add_arguments(parser: Any) -> None:
    """Options by group; a config file holds the same groups."""
    from spt.training.recipe import DataOptions, RecipeOptions

    add_groups(parser, DataOptions, RecipeOptions)


def add_groups(parser: Any, data: type, recipe: type) -> None:
    """Run options, ``data``, ``backbone``, ``method``, ``recipe`` and ``trainer``."""
    from spt.training.recipe import BackboneOptions, MethodOptions

    add_run_options(parser)
    groups = {"data": data, "backbone": BackboneOptions, "method": MethodOptions, "recipe": recipe}
    for name, kind in {**groups, "savings": Savings, "ema": EMA}.items():
        parser.add_class_arguments(kind, name)
    for name, kind in TRAINER.items():
        parser.add_argument(f"--trainer.{name}", type=kind | None, default=None, help="of Lightning's Trainer")


def to_options(content: Any) -> RealOptions:
    """Options from a parsed namespace or a run's config."""
    from spt.training.lists import RealOptions
    from spt.training.recipe import DataOptions, RecipeOptions

    parts, trainer = read_groups(content, DataOptions, RecipeOptions)
    return RealOptions(**parts, trainer=trainer)


def read_groups(content: Any, data: type, recipe: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The groups as their dataclasses, and the Trainer's options that were given.

    Raises:
        UserError: for a group or an option that is unknown, or savings that cannot be.
    """
    from spt.training.recipe import BackboneOptions, MethodOptions

    groups = {"data": data, "backbone": BackboneOptions, "method": MethodOptions, "recipe": recipe}
    try:
        parts = {name: kind(**dict(content[name])) for name, kind in groups.items()}
        parts["savings"] = Savings(**dict(content.get("savings") or {}))
        ema = EMA(**dict(content.get("ema") or {}))
    except (KeyError, TypeError) as error:
        raise UserError(f"this is not a run on real data: {error}") from error
    trainer = {k: _number(v) for k, v in dict(content.get("trainer") or {}).items() if v is not None}
    if ema.decay is not None:
        raise UserError(f"ema.decay {ema.decay} is not for this method: its checkpoints hold the tuned tensors alone")
    check(parts["savings"], trainer, refused=REFUSED)
    return parts, trainer


def _number(value: Any) -> Any:
    """``--trainer.devices 2`` is a count, ``auto`` a word."""
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value


def run(arguments: Any) -> None:
    """One run, new or continued."""
    from spt.training.lists import train_run

    folder = find_run(arguments.root, "spt", arguments.name, arguments.resume)
    with folder.lock():
        if arguments.resume:
            if "tasks" in (content := folder.read_config()):
                raise UserError(f"{folder.path} is a sweep; continue it with `spt sweep --resume {folder.path}`")
            options = to_options(content)
        else:
            options = to_options(vars(arguments))
            folder.write_config(asdict(options))
            folder.write_environment()
        train_run(options, folder, bool(arguments.resume))


def evaluate_run(folder: RunFolder) -> None:
    """Evaluates the last checkpoint of a run on real data again and writes metrics.json."""
    import time

    from paperkit.results.report import print_metrics
    from spt.training.lists import build, epoch_trainer, result
    from spt.training.tuning_module import TuningModule

    start, options = time.monotonic(), to_options(folder.read_config())
    last = folder.path / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise UserError(f"{folder.path} has no checkpoint at {last}")
    data, tuned, _ = build(options, folder.path)
    module = TuningModule(tuned.model, options.recipe, data.classes, list(data.tests))
    trainer = epoch_trainer(options, folder.path, devices=1)
    from paperkit.files.weights import read_checkpoint

    content = read_checkpoint(last)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=False)
    earlier = list(module.history)
    trainer.validate(module, datamodule=data, verbose=False)
    module.history = [*earlier, {**module.history[-1], "epoch": float(options.recipe.epochs)}]
    metrics = result(options, tuned, module, "spt eval", time.monotonic() - start)
    metrics.write(folder.path / "metrics.json")
    print_metrics(metrics, f"{options.method.name} on {options.data.name}")
