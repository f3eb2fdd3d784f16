"""Runs that end well: what they save and when, and what they do at a loss that is NaN and at a signal.

Callbacks, which decide for all processes of a run together, so that none is left waiting for the others.

* `KeepLast` and `KeepBest` save a run where it can go on without having missed anything. A checkpoint of an epoch's
  last batch would not know whether the evaluation that follows was made; none is written there, but after it.
* `StopOnNaN` stops a run before a NaN reaches the weights.
* `SaveOnSignal` saves and leaves after the step in which the signal came, and after its evaluation if one follows.

`KeepBest`, `KeepLast` and `SaveOnSignal` belong into the Trainer's list in this order. Lightning calls checkpoint
callbacks after all others, so what they write holds what those did.
"""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from paperkit.errors import Interrupted, UserError
from paperkit.files.weights import read_checkpoint
from paperkit.training.checkpoint_io import describe_newest_good


def _checkpoint_folders(trainer: pl.Trainer) -> list[Path]:
    folders = (getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks)
    return [Path(folder) for folder in folders if folder]


def last_good_checkpoint(trainer: pl.Trainer) -> str:
    """`<path> (step N)`: the newest checkpoint of this run that reads and holds no NaN; `none yet` without one."""
    return describe_newest_good(_checkpoint_folders(trainer))


def _saves(trainer: pl.Trainer) -> bool:
    fast = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by one of Lightning's helpers
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not fast


def _epoch_ends(trainer: pl.Trainer) -> bool:
    """Whether the batch that was just trained on is the last of its epoch, or of the run."""
    return trainer.fit_loop.epoch_loop._is_training_done


def _more_follows(trainer: pl.Trainer) -> bool:
    """Whether an evaluation or the end of the epoch follows the batch that was just trained on."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return _epoch_ends(trainer) or (trainer.enable_validation and loop._should_check_val_fx(fetcher))


class CountUpdates(pl.Callback):
    """Keeps the step that is logged with a value at the number of updates done before it.

    Lightning counts on by itself, one too many after a resume from the evaluation within an epoch.
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before anything is logged for this batch."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


class KeepLast(Checkpoint):
    """Writes `last.ckpt`: every so many steps, after each evaluation, and when training ends.

    A save that falls on a step with an evaluation, or on the last one of an epoch, waits until that is over.

    Args:
        folder: of the checkpoint; the checkpoint itself knows no path.
        every: optimiser steps; None saves at the end of each epoch.

    Attributes:
        measured: the values of the last evaluation, kept in the checkpoint.
    """

    def __init__(self, folder: Path, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise UserError(f"save_every {every} must be at least 1")
        self.dirpath, self.every = Path(folder), every
        self.path = self.dirpath / "last.ckpt"
        self.measured: dict[str, float] = {}
        self._saved, self._waiting = 0, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The step that a resumed run begins with is saved already."""
        self._saved, self._waiting = trainer.global_step, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every `every` steps, or notes that it has to."""
        if self.every and trainer.global_step % self.every == 0 and trainer.global_step != self._saved:
            if _more_follows(trainer):
                self._waiting = True
            else:
                self.save(trainer, within_batch=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps what was measured; saves unless the end of the epoch follows."""
        if _saves(trainer):
            self.measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self._waiting = True
            if not _epoch_ends(trainer):
                self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves if a save waits, or after each epoch where that was asked for."""
        if self._waiting or self.every is None:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the last step."""
        if trainer.global_step != self._saved:
            self.save(trainer)

    def save(self, trainer: pl.Trainer, within_batch: bool = False) -> None:
        """Writes the file now, on all processes, and what was logged until now.

        Args:
            within_batch: from `on_train_batch_end`, after which Lightning logs the values of this step: a run that goes
                on from here would never log them.
        """
        self._waiting = False
        if _saves(trainer):
            if within_batch:
                trainer._logger_connector.update_train_step_metrics()
            for logger in trainer.loggers:
                logger.save()
            trainer.save_checkpoint(self.path, weights_only=False)
            self._saved = trainer.global_step

    def save_once(self, trainer: pl.Trainer, within_batch: bool) -> None:
        """As `save`, unless this step is saved already."""
        if self._waiting or trainer.global_step != self._saved:
            self.save(trainer, within_batch)

    def state_dict(self) -> dict[str, Any]:
        """The values of the last evaluation."""
        return {"measured": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Before the first resumed step."""
        self.measured = dict(state_dict["measured"])


class KeepBest(Checkpoint):
    """Writes `best.ckpt` after an evaluation whose value is higher than that of the file which is there.

    The file itself holds its value, and is asked for it when training starts: however a run was cut off between its
    two files, a lower value never takes the place of a higher one.

    Args:
        folder: of the checkpoint.
        monitor: name of the logged value.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        self.dirpath, self.monitor = Path(folder), monitor
        self.path = self.dirpath / "best.ckpt"
        self.value: float | None = None
        self._fresh = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads the value of the file."""
        self._fresh = False
        self.value = trainer.strategy.broadcast(self._value_of_file() if trainer.is_global_zero else None)

    def _value_of_file(self) -> float | None:
        try:
            states = read_checkpoint(self.path).get("callbacks", {})
        except UserError:  # no file yet, or a damaged one, which is no loss to replace
            return None
        state = states.get(self.state_key, {})
        return state.get("value") if state.get("monitor") == self.monitor else None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the value; at the end of an epoch the file waits for that."""
        if _saves(trainer):
            self._fresh = True
            if not _epoch_ends(trainer):
                self._save_if_higher(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the value if the evaluation was the last of this epoch."""
        if self._fresh:
            self._save_if_higher(trainer)

    def _save_if_higher(self, trainer: pl.Trainer) -> None:
        self._fresh = False
        if self.monitor not in trainer.callback_metrics:
            raise KeyError(f"the evaluation logged no {self.monitor}; it logged {sorted(trainer.callback_metrics)}")
        value = float(trainer.callback_metrics[self.monitor])
        value = float("-inf") if value != value else value  # a NaN is the lowest
        if trainer.strategy.reduce_boolean_decision(self.value is None or value > self.value):
            before, self.value = self.value, value
            try:
                trainer.save_checkpoint(self.path, weights_only=False)
            except BaseException:
                self.value = before
                raise

    def state_dict(self) -> dict[str, Any]:
        """The value of the file as it is, or as this one will be."""
        return {"monitor": self.monitor, "value": self.value}


class StopOnNaN(pl.Callback):
    """Stops before the optimiser step if the loss or a gradient is not finite, on all ranks if it is so on one.

    Nothing is saved: the checkpoints stay those of the last good steps, and the error names the newest. With 16-mixed
    precision only a loss that is NaN counts, since infinite gradients are how its loss scale is found.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keeps the loss; it is looked at once per optimiser step, with those that accumulate."""
        self._losses.append(loss.detach().float())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at losses and gradients.

        Raises:
            UserError: naming step, epoch, learning rate, last good checkpoint and what usually helps.
        """
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        device = trainer.strategy.root_device
        losses = torch.stack([loss.to(device) for loss in self._losses] or [torch.zeros((), device=device)])
        self._losses.clear()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad_loss = losses.isnan().any() if scaled else ~losses.isfinite().all()
        bad_gradient = torch.zeros_like(bad_loss)
        if gradients and not scaled:  # the largest magnitude: it cannot overflow, as a sum of squares in float16 would
            bad_gradient = ~torch.nn.utils.get_total_norm(gradients, float("inf")).isfinite().to(device)
        bad = torch.stack([bad_loss, bad_gradient]).float()
        bad = trainer.strategy.reduce(bad, reduce_op="sum")
        if not bool(bad.any()):
            return
        what = "the loss" if bool(bad[0]) else "a gradient"
        rate = max(group["lr"] for group in optimizer.param_groups)
        raise UserError(
            f"{what} is not finite at step {trainer.global_step} (epoch {trainer.current_epoch}, learning rate "
            f"{rate:.3g}); last good checkpoint: {last_good_checkpoint(trainer)}; "
            "try a lower learning rate, gradient_clip_val 1, or precision 32-true",
            everywhere=True,
        )


class SaveOnSignal(Checkpoint):
    """On SIGTERM, SIGHUP or Ctrl-C: finishes the step, saves `last.ckpt`, and leaves with an exit code that says why.

    A step with an evaluation after it is finished when that is made and the epoch is closed. A signal on one rank
    counts for all. A second signal leaves at once, with the checkpoints as they are.

    Args:
        resume: the command that continues the run, for the closing line; by default the checkpoint's path as an option.
    """

    def __init__(self, resume: str | None = None) -> None:
        self.resume = resume
        self._received = 0
        self._previous: dict[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals before loaders start their workers, which inherit that and survive a terminal's Ctrl-C."""
        self._received = 0
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            heard = (s for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN)
            self._previous = {s: signal.signal(s, self._note) for s in heard}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes SIGTERM back from Lightning, whose handler ends the process with exit code 0."""
        for number in self._previous:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._previous:  # Lightning put the handler back after the run: behave as if it were not there
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
        elif self._received:
            raise Interrupted("interrupted by a second signal; nothing more was saved", 128 + number)
        self._received = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leaves if a signal came and the step is whole: gradients that still accumulate are in no checkpoint."""
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if done % trainer.accumulate_grad_batches == 0 and not _more_follows(trainer):
            self._leave_if_told(trainer, within_batch=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves after an evaluation within an epoch."""
        if _saves(trainer) and not _epoch_ends(trainer):
            self._leave_if_told(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves after the last step of an epoch and its evaluation."""
        self._leave_if_told(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves if the signal came after the last step."""
        self._leave_if_told(trainer)

    def _leave_if_told(self, trainer: pl.Trainer, within_batch: bool = False) -> None:
        number = self._received
        if trainer.world_size > 1:
            told = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not number:
            return
        path = self._save_last(trainer, within_batch)
        command = self.resume or f"--ckpt_path {path}"
        line = f"interrupted at step {trainer.global_step}; resume with: {command}"
        raise Interrupted(line, 128 + number, everywhere=True)

    def _save_last(self, trainer: pl.Trainer, within_batch: bool) -> Path:
        keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, KeepLast)]
        if keepers:
            keepers[0].save_once(trainer, within_batch)
            return keepers[0].path
        others = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
        keeper = next((c for c in others if c.save_last), others[0] if others else None)
        if keeper is None:
            path = Path(trainer.default_root_dir) / "last.ckpt"
        else:
            path = Path(str(keeper.dirpath)) / f"{keeper.CHECKPOINT_NAME_LAST}{keeper.FILE_EXTENSION}"
            keeper.last_model_path = str(path)  # else the resumed run takes the file for another's: last-v1.ckpt
        trainer.save_checkpoint(path, weights_only=False)
        return path

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._release()

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
