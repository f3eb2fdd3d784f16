"""Averaged weights (EMA) by Lightning's callback, on the model's device and with a beginning that loses nothing."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging


class Averaging(EMAWeightAveraging):
    """Lightning's average, which until ``start_step`` is a copy of the trained weights (there it is their first value).

    Put it before :class:`paperkit.training.guard.SaveOnSignal` among the callbacks, so that what a signal saves
    holds the average of the step that it finished.

    Args:
        decay: share of the average that a step keeps.
        start_step: optimiser steps before the averaging begins.
    """

    def __init__(self, decay: float, start_step: int = 0) -> None:
        super().__init__(decay=decay)
        self.start_step = start_step

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning copies the module before it moves to its device, and would average there."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One update per optimiser step; the first one copies."""
        if self._average_model is not None and trainer.global_step <= self.start_step:
            self._average_model.n_averaged.zero_()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
