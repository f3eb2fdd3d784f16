"""One training run that can be killed at any point: checkpoints written whole, exact continuation, no work done
twice.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from paperkit.data.resumable import SeedStep
from paperkit.training.checkpoint_io import AtomicCheckpointIO
from paperkit.training.guard import SaveOnSignal, StopOnNaN
from paperkit.training.savings import EMA
from paperkit.training.switches import callbacks as averaging
from snnet.training.joint import JointTraining

SAVE_EVERY = 200  # steps; a checkpoint of the digits' networks takes milliseconds


class CountSteps(Callback):
    """Tells a progress bar of every step."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.advance(trainer.global_step * trainer.accumulate_grad_batches)  # what an interrupted run had done already

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        self.advance(1)


def fit(
    training: JointTraining,
    data: pl.LightningDataModule,
    folder: Path,
    epochs: int,
    advance: Callable[[int], None],
    callbacks: Sequence[Callback] = (),
    log: bool = False,
    options: Mapping[str, Any] | None = None,
    ema: EMA | None = None,
) -> None:
    """Train to the end on one CPU thread, from `folder`/last.ckpt if that is there.

    Args:
        options: of Lightning's Trainer.
        ema: averaged weights.
        log: write TensorBoard files into the folder.
    """
    last = folder / "last.ckpt"
    trainer = pl.Trainer(
        **{"accelerator": "cpu", **(options or {})},
        devices=1,
        max_epochs=epochs,
        logger=TensorBoardLogger(folder, name="", version="tensorboard") if log else False,
        callbacks=[
            SeedStep(training.seed),
            StopOnNaN(),
            *averaging(ema or EMA()),
            SaveOnSignal(),
            ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=SAVE_EVERY),
            CountSteps(advance),
            *callbacks,
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(training, datamodule=data, ckpt_path=last if last.exists() else None)
