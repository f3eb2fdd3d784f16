"""Killed and resumed runs end with the weights of an uninterrupted one, bit for bit; samplers and seeds one by one."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from paperkit import optim
from paperkit.errors import UserError
from paperkit.resumable import (
    Draw,
    EvenSampler,
    ResumableData,
    SeededDataset,
    SeededSampler,
    SeedStep,
    seed_of,
    seeded_loader,
)

STEPS_PER_EPOCH, EPOCHS, SEED = 6, 3, 5


class Points(Dataset[tuple[Tensor, int]]):
    """Labelled points under an augmentation that draws from all three global generators."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        point = torch.full((8,), index / 50) + 0.1 * torch.randn(8)
        return point * random.uniform(0.9, 1.1) + np.random.normal(0, 0.1), index % 3


class PointsData(ResumableData, pl.LightningDataModule):
    def __init__(self, workers: int, batch_size: int = 8) -> None:
        super().__init__()
        self.workers, self.batch_size = workers, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = self.train_sampler(50, SEED, self.batch_size)
        return seeded_loader(SeededDataset(Points(), SEED), sampler, self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return seeded_loader(SeededDataset(Points(), SEED), self.eval_sampler(50, 25), self.workers)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0] * np.random.uniform(0.9, 1.1)), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> dict[str, Any]:
        cfg = optim.OptimConfig(lr=1e-2, warmup_epochs=1)
        return optim.lightning_dict(*optim.build(self.net, cfg, STEPS_PER_EPOCH, EPOCHS))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        optim.step_schedule(scheduler, self.trainer)


class KillAfter(pl.Callback):
    """kill -9 to itself once ``step`` updates are done and saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, workers: int, kill: int | None, accumulate: int = 1, **saving: int) -> str:
    """Trains, or resumes what lies in ``folder``; returns the SHA-256 of the final weights."""
    torch.manual_seed(SEED)
    last = folder / "last.ckpt"
    callbacks = [
        ModelCheckpoint(folder, save_last=True, **saving),
        SeedStep(SEED),
        *([KillAfter(kill)] if kill else []),
    ]
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net = Net()
    trainer.fit(net, datamodule=PointsData(workers), ckpt_path=last if last.exists() else None)
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()


def in_child(*args: Any, **kwargs: Any) -> str | None:
    """``train`` in a forked process (no second import of torch); None if it was killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, train(*args, **kwargs).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        digest = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    return digest


# name: (when files are written, update at which the process is killed, accumulated batches)
CASES = {
    "middle of an epoch": ({"every_n_train_steps": 4}, 10, 1),
    "first step of an epoch": ({"every_n_train_steps": 7}, 9, 1),
    "file written on the last batch": ({"every_n_train_steps": 6}, 14, 1),
    "last batch is what remains": ({"every_n_train_steps": 11}, 11, 1),
    "file of each epoch": ({"every_n_epochs": 1}, 14, 1),
    "two accumulated batches": ({"every_n_train_steps": 2}, 5, 2),
}


def run_all(root: Path, workers: int) -> dict[str, tuple[str, str]]:
    """(uninterrupted digest, digest after kill and resume) of each case."""
    torch.set_num_threads(1)
    whole = {n: in_child(root / f"whole{n}", workers, None, n, every_n_train_steps=4) for n in (1, 2)}
    outcome = {}
    for name, (saving, kill, accumulate) in CASES.items():
        folder = root / name.replace(" ", "-")
        assert in_child(folder, workers, kill, accumulate, **saving) is None, "the process was not killed"
        assert (folder / "last.ckpt").exists(), "nothing to resume from"
        outcome[name] = (whole[accumulate], in_child(folder, workers, None, accumulate, **saving))
    return outcome


@pytest.fixture(scope="module", params=[0, 2], ids=["0 workers", "2 workers"])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("runs")
    command = [sys.executable, __file__, str(root), str(request.param)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return {"digests": json.loads(done.stdout.splitlines()[-1]), "messages": done.stderr}


@pytest.mark.parametrize("case", CASES)
def test_killed_run_ends_with_the_same_weights(outcome: dict[str, Any], case: str) -> None:
    whole, resumed = outcome["digests"][case]
    assert len(whole) == 64
    assert resumed == whole


def test_worker_count_does_not_matter_and_accumulation_does(outcome: dict[str, Any], tmp_path: Path) -> None:
    """The digest of one process without workers, computed in this process, equals the one of either worker count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = train(tmp_path, 0, None, every_n_epochs=99)
    torch.set_num_threads(threads)
    assert outcome["digests"]["file of each epoch"][0] == here
    assert outcome["digests"]["two accumulated batches"][0] != here


def test_lightnings_wrong_warning_is_silenced(outcome: dict[str, Any]) -> None:
    assert "not resumable" not in outcome["messages"]


if __name__ == "__main__":
    print("\n" + json.dumps(run_all(Path(sys.argv[1]), int(sys.argv[2]))))
