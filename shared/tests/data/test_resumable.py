"""Killed and resumed runs end with the weights of an uninterrupted one, bit for bit; samplers and seeds one by one."""

import fcntl
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

from paperkit.data.resumable import (
    Draw,
    EvenSampler,
    ResumableData,
    SeededDataset,
    SeededSampler,
    SeedStep,
    seeded_loader,
)
from paperkit.data.seeding import seed_of
from paperkit.errors import UserError
from paperkit.training import optim

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
    """kill -9 to itself once `step` updates are done and saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, workers: int, kill: int | None = None, epochs: int = EPOCHS, **options: Any) -> str:
    """Trains, or resumes what lies in `folder`; returns the SHA-256 of the final weights."""
    torch.manual_seed(SEED)
    last = folder / "last.ckpt"
    saving = {name: options.pop(name) for name in list(options) if name.startswith("every_n") or name == "monitor"}
    callbacks = [
        ModelCheckpoint(folder, save_last=True, **saving),
        SeedStep(SEED),
        *([KillAfter(kill)] if kill else []),
    ]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, **quiet, **options)
    net = Net()
    trainer.fit(net, datamodule=PointsData(workers), ckpt_path=last if last.exists() else None)
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()


def in_child(*args: Any, **kwargs: Any) -> str | None:
    """`train` in a forked process (no second import of torch); None if it was killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, train(*args, **kwargs).encode())
        finally:
            os._exit(0)
    os.close(write)
    _, status = os.waitpid(pid, 0)  # before the reading: orphaned data workers hold the pipe open for some seconds
    with os.fdopen(read) as pipe:
        return None if os.WIFSIGNALED(status) else pipe.read()


# name: (updates after which the process is killed, one start after the other; options of the run)
CASES: dict[str, tuple[list[int], dict[str, Any]]] = {
    "middle of an epoch": ([10], {"every_n_train_steps": 4}),
    "first step of an epoch": ([9], {"every_n_train_steps": 7}),
    "file written on the last batch": ([14], {"every_n_train_steps": 6}),
    "last batch is what remains": ([11], {"every_n_train_steps": 11}),
    "file of each epoch": ([14], {"every_n_epochs": 1}),
    "file of each validation": ([10], {"monitor": "val", "val_check_interval": 3}),
    "killed again after a last batch": ([8, 14, 16], {"every_n_train_steps": 6}),
    "killed again and again": ([5, 9, 13, 15], {"every_n_train_steps": 1}),
    "length given in steps": ([8, 15], {"every_n_train_steps": 6, "max_steps": EPOCHS * STEPS_PER_EPOCH, "epochs": -1}),
    "two accumulated batches": ([5], {"every_n_train_steps": 2, "accumulate_grad_batches": 2}),
    "file between accumulated batches": (
        [5, 8],
        {"monitor": "val", "val_check_interval": 3, "accumulate_grad_batches": 2},
    ),
}


# name: options of a run that ends as it should, and is then continued without them
SHORTER: dict[str, dict[str, Any]] = {
    "finished and continued": {"epochs": EPOCHS - 1},
    "ended within an epoch and continued": {"max_steps": 10},
}


def run_all(root: Path, workers: int) -> dict[str, tuple[str | None, str | None]]:
    """(digest of the uninterrupted run, digest after kill and resume) of each case."""
    whole = {n: in_child(root / f"whole {n} {workers}", workers, accumulate_grad_batches=n) for n in (1, 2)}
    outcome = {}
    for name, (kills, options) in CASES.items():
        folder = root / f"{name} {workers}"
        for kill in kills:
            assert in_child(folder, workers, kill, **options) is None, "the process was not killed"
            assert (folder / "last.ckpt").exists(), "nothing to resume from"
        resumed = in_child(folder, workers, **options)
        outcome[f"{name}, {workers} workers"] = (whole[options.get("accumulate_grad_batches", 1)], resumed)
    for name, shorter in SHORTER.items():
        in_child(root / f"{name} {workers}", workers, **shorter)
        outcome[f"{name}, {workers} workers"] = (whole[1], in_child(root / f"{name} {workers}", workers))
    return outcome


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The trainings, run once for all processes of pytest-xdist."""
    root = tmp_path_factory.getbasetemp().parent / "resumable"
    root.mkdir(exist_ok=True)
    with (root / "log").open("a") as log:  # a file: orphaned data workers would hold a pipe open
        fcntl.flock(log, fcntl.LOCK_EX)
        if not (root / "digests.json").exists():
            subprocess.run([sys.executable, __file__, str(root)], stdout=log, stderr=log, timeout=120)
    messages = (root / "log").read_text()
    assert (root / "digests.json").exists(), messages[-2000:]
    return {"digests": json.loads((root / "digests.json").read_text()), "messages": messages}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", [*CASES, *SHORTER])
def test_killed_run_ends_with_the_same_weights(outcome: dict[str, Any], case: str, workers: int) -> None:
    whole, resumed = outcome["digests"][f"{case}, {workers} workers"]
    assert len(whole) == 64
    assert resumed == whole


def test_workers_do_not_matter_and_accumulation_does(outcome: dict[str, Any]) -> None:
    """Workers do not move the weights; that two accumulated batches do shows that the comparison can fail."""
    digests = {name: whole for name, (whole, _) in outcome["digests"].items()}
    accumulated = {whole for name, whole in digests.items() if "accumulated" in name}
    others = set(digests.values()) - accumulated
    assert len(accumulated) == len(others) == 1


def test_lightnings_wrong_warning_is_silenced(outcome: dict[str, Any]) -> None:
    assert "Restoring states from the checkpoint" in outcome["messages"]
    assert "not resumable" not in outcome["messages"]


def test_seed_of_is_stable_and_sensitive() -> None:
    """The first value is BLAKE2b of b"0,1,2" by hand; a changed value would change every run ever made."""
    assert seed_of(0, 1, 2) == int.from_bytes(hashlib.blake2b(b"0,1,2", digest_size=8).digest(), "big") >> 1
    seeds = {seed_of(a, b, c) for a in range(9) for b in range(9) for c in range(9)}
    assert len(seeds) == 729
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3)
    assert seed_of(np.int64(3)) == seed_of(3)


def drawn(sampler: SeededSampler | EvenSampler) -> list[list[Draw]]:
    return list(sampler)


def test_epoch_is_a_permutation_without_the_remainder() -> None:
    sampler = SeededSampler(50, seed=1, batch_size=8)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = drawn(sampler)
        assert [len(batch) for batch in batches] == [8] * 6 == [8] * len(sampler)
        assert {draw.epoch for batch in batches for draw in batch} == {epoch}
        epochs.append([draw.index for batch in batches for draw in batch])
        assert len(set(epochs[-1])) == 48
    assert epochs[0] != epochs[1]
    assert drawn(SeededSampler(50, seed=2, batch_size=8))[0] != drawn(SeededSampler(50, seed=1, batch_size=8))[0]


def test_ranks_share_the_batch_of_one_process() -> None:
    """Two processes with 4 images see, step by step, the 8 images of one process."""
    whole = drawn(SeededSampler(50, seed=1, batch_size=8))
    ranks = [drawn(SeededSampler(50, seed=1, rank=rank, world=2, batch_size=4)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *ranks, strict=True):
        assert sorted(batch) == sorted(first + second)
        assert not set(first) & set(second)


def test_offset_keeps_the_length_and_the_order() -> None:
    """Lightning counts fetched batches from the offset up to the FULL length; a new epoch starts at its beginning."""
    sampler = SeededSampler(50, seed=1, batch_size=8)
    sampler.seek(3, 4)
    sampler.set_epoch(3)
    rest = drawn(sampler)
    assert len(sampler) == 6
    sampler.seek(3)
    assert rest == drawn(sampler)[4:]
    sampler.seek(3, 4)
    sampler.set_epoch(4)
    assert len(drawn(sampler)) == 6


def test_repeated_augmentation_spreads_copies_over_ranks() -> None:
    """DeiT's repeats: an epoch of equal length shows n / 3 images, and the copies lie on three different ranks."""
    ranks = [drawn(SeededSampler(60, seed=1, rank=rank, world=3, batch_size=4, repeats=3)) for rank in range(3)]
    flat = [[draw for batch in batches for draw in batch] for batches in ranks]
    assert [len(draws) for draws in flat] == [20] * 3
    for copies in zip(*flat, strict=True):
        assert len({draw.index for draw in copies}) == 1
        assert sorted(draw.copy for draw in copies) == [0, 1, 2]
    assert len({draw.index for draw in flat[0]}) == 20


@pytest.mark.parametrize(
    ("n", "batch_size", "world", "largest"),
    [(600, 256, 1, 200), (600, 256, 2, 150), (7, 3, 3, 3), (601, 100, 2, 76), (10, 1, 3, 2)],
)
def test_evaluation_sees_each_image_once_in_equally_many_batches(
    n: int, batch_size: int, world: int, largest: int
) -> None:
    """The last case: 4 + 3 + 3 images one by one are not equally many batches, so one rank takes a pair."""
    samplers = [EvenSampler(n, rank, world, batch_size) for rank in range(world)]
    batches = [drawn(sampler) for sampler in samplers]
    assert sorted(draw.index for rank in batches for batch in rank for draw in batch) == list(range(n))
    assert {len(rank) for rank in batches} == {len(samplers[0])}
    assert all(batch for rank in batches for batch in rank)
    assert max(len(batch) for rank in batches for batch in rank) == largest


def test_augmentation_depends_on_the_draw_alone_and_leaves_no_trace() -> None:
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    data = SeededDataset(Points(), SEED)
    one = data[Draw(2, 7)][0]
    after = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    batch, labels = data[[Draw(2, 3), Draw(2, 7), Draw(3, 7), Draw(2, 7, copy=1)]]
    assert torch.equal(batch[1], one)
    assert len({tuple(row.tolist()) for row in batch[1:]}) == 3
    assert labels.tolist() == [0, 1, 1, 1]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    assert after == (torch.rand(1).item(), np.random.rand(), random.random())


@pytest.mark.parametrize(
    ("changed", "message"), [({"seed": 6}, "seed was 5, is 6"), ({"batch_size": 10}, "batch size was 8, is 10")]
)
def test_changed_run_is_refused_in_the_middle_of_an_epoch(changed: dict[str, int], message: str) -> None:
    state = {"seed": SEED, "images": 50, "batch size": 8, "processes": 1, "repeats": 1}
    data = PointsData(0)
    data.load_state_dict({"epoch": 1, "batch": 3, **state})
    with pytest.raises(UserError, match=f"middle of epoch 1: {message}"):
        data.train_sampler(50, **{"seed": SEED, "batch_size": 8, **changed})
    data.load_state_dict({"epoch": 1, "batch": 0, **state})
    assert data.train_sampler(50, **{"seed": SEED, "batch_size": 8, **changed}).epoch == 1


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="do not fill one batch of 8 on 4"):
        SeededSampler(31, 0, world=4, batch_size=8)
    with pytest.raises(UserError, match="at least 1"):
        SeededSampler(31, 0, batch_size=0)
    with pytest.raises(UserError, match="cannot be shared by 4"):
        EvenSampler(3, world=4)


class Refusing(Points):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise UserError(f"x.png: its label {index} is UserError: above 3")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refusal_is_one_line_out_of_a_worker_process(workers: int) -> None:
    sampler = EvenSampler(50, batch_size=25)
    with pytest.raises(UserError) as caught:
        next(iter(seeded_loader(SeededDataset(Refusing(), SEED), sampler, workers)))
    assert str(caught.value) == "x.png: its label 0 is UserError: above 3"


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    (folder / "digests.json").write_text(json.dumps(run_all(folder, 0) | run_all(folder, 2)))
