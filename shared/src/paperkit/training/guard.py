"""Runs that end well: a loss that is no number stops them before it reaches the weights, a signal after the step's end.

Both are callbacks, and both decide for all processes of a run together, so that none is left waiting for the others.
"""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer

from paperkit.errors import Interrupted, UserError
from paperkit.training.last_good import describe_newest_good


def _checkpoint_folders(trainer: pl.Trainer) -> list[Path]:
    callbacks = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
    return [Path(callback.dirpath) for callback in callbacks if callback.dirpath]


def last_good_checkpoint(trainer: pl.Trainer) -> str:
    """``<path> (step N)``: the newest checkpoint of this run that reads and holds no NaN; ``none yet`` without one."""
    return describe_newest_good(_checkpoint_folders(trainer))


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


class SaveOnSignal(pl.Callback):
    """On SIGTERM or Ctrl-C: finishes the step, saves ``last.ckpt``, and leaves with an exit code that says why.

    A signal on one rank counts for all. During validation, the next training step is the one that is finished. A second
    signal leaves at once, with the checkpoints as they are.

    Args:
        resume: the command that continues the run, for the closing line; by default the checkpoint's path as an option.
    """

    def __init__(self, resume: str | None = None) -> None:
        self.resume = resume
        self._received = 0
        self._previous: dict[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals before loaders start their workers, which else would die of the terminal's Ctrl-C."""
        self._received = 0
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

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
        progress = trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.ready
        whole = done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches
        if whole or progress.is_last_batch:
            self._leave_if_told(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves if the signal came after the last step."""
        self._leave_if_told(trainer)

    def _leave_if_told(self, trainer: pl.Trainer) -> None:
        number = self._received
        if trainer.world_size > 1:
            told = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not number:
            return
        path = self._save_last(trainer)
        command = self.resume or f"--ckpt_path {path}"
        line = f"interrupted at step {trainer.global_step}; resume with: {command}"
        raise Interrupted(line, 128 + number, everywhere=True)

    def _save_last(self, trainer: pl.Trainer) -> Path:
        keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
        keeper = next((c for c in keepers if c.save_last), keepers[0] if keepers else None)
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
