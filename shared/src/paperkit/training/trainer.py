"""Lightning's Trainer as every paper uses it: its options, its callbacks in order, its checkpoints, the resumed fit.

Importing this module imports neither Lightning nor torch, so that an engine can declare the options for `--help`.
A paper declares `add_trainer_options(parser)`, reads them with `trainer_options(options.trainer)`, and trains with

    trainer = make_trainer(run.path, trainer_options(options.trainer), seed, resume_with="litv2 train --resume ...",
                           save_every=1000, best="val/acc1", averaging=switches.callbacks(ema))
    fit(trainer, module, data, resume=resuming)

A run's folder then holds `checkpoints/last.ckpt`, `checkpoints/best.ckpt` and `tensorboard/`. No file of them knows
where the folder lies, so a run may be moved, renamed and resumed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paperkit.errors import UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import Tensor

TRAINER_OPTIONS: dict[str, Any] = {
    "accelerator": str,
    "strategy": str,
    "devices": int | str | list[int],
    "num_nodes": int,
    "precision": int | str,
    "accumulate_grad_batches": int,
    "gradient_clip_val": float,
    "limit_train_batches": int | float,
    "limit_val_batches": int | float,
    "log_every_n_steps": int,
    "check_val_every_n_epoch": int,
    "max_steps": int,
    "benchmark": bool,
    "deterministic": bool | Literal["warn"],
    "sync_batchnorm": bool,
    "enable_progress_bar": bool,
}
"""What of Lightning's Trainer a user may set in every engine; the rest is the recipe's or this module's."""

FURTHER_OPTIONS: dict[str, Any] = {
    "max_epochs": int,
    "max_time": str,
    "gradient_clip_algorithm": Literal["norm", "value"],
    "val_check_interval": int | float,
    "fast_dev_run": bool | int,
}
"""What only some engines offer: those that name them in `also` or give them a default."""


def add_trainer_options(
    parser: Any, *, defaults: Mapping[str, Any] | None = None, skip: Sequence[str] = (), also: Sequence[str] = ()
) -> None:
    """Declares `--trainer.NAME` on a jsonargparse parser; an option that is not given is None.

    Args:
        parser: of jsonargparse.
        defaults: option -> value; one of `FURTHER_OPTIONS` among them is declared as well.
        skip: options of `TRAINER_OPTIONS` that this engine decides itself.
        also: names of `FURTHER_OPTIONS`.
    """
    defaults = dict(defaults or {})
    further = {name: kind for name, kind in FURTHER_OPTIONS.items() if name in also or name in defaults}
    for name, kind in {**TRAINER_OPTIONS, **further}.items():
        if name not in skip:
            default = defaults.pop(name, None)
            parser.add_argument(f"--trainer.{name}", type=kind | None, default=default, help="of Lightning's Trainer")
    if defaults:
        raise ValueError(f"the Trainer has no option {', '.join(defaults)} here")


def trainer_options(namespace: Any) -> dict[str, Any]:
    """The options that were given, from the parser's group or a run's saved config; a number of devices is an int."""
    content = namespace if isinstance(namespace, Mapping) else vars(namespace)
    options = {name: value for name, value in content.items() if value is not None}
    devices = options.get("devices")
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        options["devices"] = int(devices)
    return options


def make_trainer(
    folder: Path,
    options: Mapping[str, Any],
    seed: int,
    *,
    resume_with: str,
    save_every: int | None = None,
    best: str | None = None,
    averaging: Sequence["pl.Callback"] = (),
    callbacks: Sequence["pl.Callback"] = (),
    checkpoints: str = "checkpoints",
    csv: bool = False,
    **more: Any,
) -> "pl.Trainer":
    """Lightning's Trainer with what every run needs: seeded steps, whole checkpoints, a clean end.

    Its callbacks run in this order: `SeedStep`, `CountUpdates`, `StopOnNaN`, averaging, the paper's own, the learning
    rates, and then those that save: `KeepBest`, `KeepLast`, `SaveOnSignal`.

    Args:
        folder: of the run.
        options: the user's (`trainer_options`); they win over `more`.
        seed: of what the model draws in a step.
        resume_with: the command that continues the run, for the line that ends an interrupted one.
        save_every: optimiser steps between two `last.ckpt`; one is written after each evaluation and at the end as
            well. None writes one after each epoch.
        best: the metric whose highest value makes `best.ckpt`.
        averaging: `paperkit.training.switches.callbacks(ema)`.
        callbacks: the paper's own.
        checkpoints: the folder of the checkpoints inside `folder`.
        csv: write the logged values to `csv/metrics.csv` as well.
        more: further arguments of Lightning's Trainer.
    """
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import LearningRateMonitor, TQDMProgressBar
    from pytorch_lightning.loggers import TensorBoardLogger

    from paperkit.data.resumable import SeedStep
    from paperkit.training.checkpoint_io import AtomicCheckpointIO, ValueTable
    from paperkit.training.guard import CountUpdates, KeepBest, KeepLast, SaveOnSignal, StopOnNaN

    loggers: list[Any] = [TensorBoardLogger(folder, "", "tensorboard")]
    if csv:
        loggers.append(ValueTable(folder / "csv" / "metrics.csv"))
    chosen: dict[str, Any] = {"logger": loggers, **more}
    chosen |= {name: value for name, value in options.items() if value is not None}
    bar = chosen.pop("enable_progress_bar", True)
    place = folder / checkpoints
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=[
            SeedStep(seed),
            CountUpdates(),
            StopOnNaN(),
            *averaging,
            *callbacks,
            *([LearningRateMonitor(logging_interval="step")] if chosen["logger"] else []),
            *([TQDMProgressBar()] if bar else []),
            *([KeepBest(place, best)] if best else []),
            KeepLast(place, save_every),
            SaveOnSignal(resume_with),
        ],
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=bool(bar),
        **chosen,
    )


def fit(trainer: "pl.Trainer", module: "pl.LightningModule", data: "pl.LightningDataModule", resume: bool) -> None:
    """Trains to the end, with `resume` from the run's `last.ckpt` if there is one."""
    last = _keeper(trainer).path
    trainer.fit(module, datamodule=data, ckpt_path=last if resume and last.exists() else None)


def last_evaluation(trainer: "pl.Trainer") -> dict[str, float]:
    """What the last evaluation of the run measured, also where it was made before a kill; empty if there was none."""
    return dict(_keeper(trainer).measured)


def _keeper(trainer: "pl.Trainer") -> Any:
    from paperkit.training.guard import KeepLast

    return next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, KeepLast))


def best_state(folder: Path, prefix: str = "network.") -> "dict[str, Tensor] | None":
    """Weights in `folder/checkpoints/best.ckpt` whose keys begin with `prefix`, without it; None without the file.

    Raises:
        UserError: if the file cannot be read, or holds no such weights.
    """
    from paperkit.files.weights import read_checkpoint

    path = folder / "checkpoints" / "best.ckpt"
    if not path.exists():
        return None
    state = read_checkpoint(path, advice=None)["state_dict"]
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        raise UserError(f"{path} holds no weights that begin with {prefix!r}")
    return found


def save_last_and_best(network: Any, run: Path, folder: Path | None = None) -> None:
    """Writes `run/model/`, the last weights, which the network keeps, and `run/best/`, those of the best validation.

    Args:
        network: with `save_pretrained`; a LightningModule trained it under the name `network`.
        folder: whose `checkpoints/best.ckpt` is meant; the run's without.
    """
    from paperkit.files.weights import load_strict

    network.save_pretrained(run / "model")
    best = best_state(folder or run)
    if best is not None:
        last = {key: value.clone() for key, value in network.state_dict().items()}
        load_strict(network, best, str((folder or run) / "checkpoints" / "best.ckpt"))
        network.save_pretrained(run / "best")
        network.load_state_dict(last)
