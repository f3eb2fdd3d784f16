"""Runs that end early: by signals, by a loss that is no number, by kill -9 in the middle of a save.

Real trainings in forked children of one helper process (this file as a script), which writes what came of each.
"""

import fcntl
import hashlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from paperkit.command.cli import guarded
from paperkit.data.resumable import ResumableData, SeededDataset, SeedStep, seeded_loader
from paperkit.errors import UserError
from paperkit.files import weights as checkpoints
from paperkit.files.runs import RunFolder
from paperkit.files.seal import Piece
from paperkit.files.weights import read_checkpoint
from paperkit.training.checkpoint_io import AtomicCheckpointIO
from paperkit.training.guard import SaveOnSignal, StopOnNaN

pytestmark = pytest.mark.xdist_group("guard")  # one process waits for the trainings, the other goes on
STEPS_PER_EPOCH, SEED = 6, 3


class Data(ResumableData, pl.LightningDataModule):
    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers
        draw = torch.Generator().manual_seed(SEED)
        self.points = TensorDataset(torch.randn(50, 8, generator=draw), torch.arange(50) % 3)

    def train_dataloader(self) -> DataLoader[Any]:
        world = self.trainer.world_size if self.trainer else 1
        dataset = SeededDataset(self.points, SEED)
        return seeded_loader(dataset, self.train_sampler(50, SEED, 8 // world), self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return seeded_loader(SeededDataset(self.points, SEED), self.eval_sampler(50, 10))


class Net(pl.LightningModule):
    """`at_step(self, batch_idx, loss) -> loss` and `at_validation(self, batch_idx)` are the faults to inject."""

    def __init__(self, at_step: Callable[..., Any] | None, at_validation: Callable[..., Any] | None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.at_step, self.at_validation = at_step, at_validation

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        return self.at_step(self, loss) if self.at_step else loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if self.at_validation:
            self.at_validation(self, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(
    run: RunFolder,
    at_step: Callable[..., Any] | None = None,
    at_validation: Callable[..., Any] | None = None,
    workers: int = 0,
    save_every: int = 4,
    **options: Any,
) -> None:
    """Trains in `run`, or resumes it, and writes the SHA-256 of the final weights."""
    torch.manual_seed(SEED)
    folder = run.path / "checkpoints"
    last = folder / "last.ckpt"
    keeper = ModelCheckpoint(folder, save_last=True, every_n_train_steps=save_every)
    callbacks = [keeper, SeedStep(SEED), StopOnNaN(), SaveOnSignal("spt train --resume x")]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        **{"max_epochs": 3, "devices": 1, "num_sanity_val_steps": 0, **quiet, **options},
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )
    net = Net(at_step, at_validation)
    with run.lock():
        trainer.fit(net, datamodule=Data(workers), ckpt_path=last if last.exists() else None)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()
    (run.path / f"digest{trainer.global_rank}").write_text(digest)


# --- faults -----------------------------------------------------------------------------------------------------------


def signal_at(step: int, number: int, group: bool = False, rank: int = 0) -> Callable[..., Any]:
    """The signal comes in the middle of the step that follows `step` updates."""

    def fault(net: Net, loss: Tensor) -> Tensor:
        if net.global_step == step and net.global_rank == rank and not getattr(net, "done", False):
            net.done = True
            (os.killpg if group else os.kill)(os.getpgid(0) if group else os.getpid(), number)
        return loss

    return fault


def signal_at_validation(net: Net, batch_idx: int) -> None:
    if net.global_step == STEPS_PER_EPOCH and batch_idx == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def two_signals(net: Net, loss: Tensor) -> Tensor:
    """A step that hangs: the second signal must not wait for it."""
    if net.global_step == 6:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    return loss


def nan_loss(net: Net, loss: Tensor) -> Tensor:
    return loss * float("nan") if net.global_step == 10 and net.global_rank == net.trainer.world_size - 1 else loss


def nan_gradient(net: Net, loss: Tensor) -> Tensor:
    """The loss is finite; the slope of the root at 0 is not."""
    return loss + (net.net[0].bias * 0).abs().sum().sqrt() if net.global_step == 10 else loss


def infinite_gradient_then_none(net: Net, loss: Tensor) -> Tensor:
    return loss * 1e38 * 10 if net.global_step == 10 else loss


def kill_in_third_save() -> None:
    """From now on, the third save dies between the pieces of the temporary file."""
    seal, count = checkpoints.seal_zip, 0

    def dying(archive: Piece) -> Iterator[Piece]:
        nonlocal count
        count += 1
        for piece in seal(archive):
            if count == 3:
                yield piece[: len(piece) // 2]
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece

    checkpoints.seal_zip = dying  # type: ignore[assignment]


# --- children ---------------------------------------------------------------------------------------------------------


def fork(run: RunFolder, name: str, work: Callable[[], None], **environment: str) -> int:
    """A child in a process group of its own; what it prints goes to `<name>.log`, its exit code is the command's."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setsid()
            signal.alarm(200)  # a child that hangs must not outlive the test
            os.environ.update(environment)
            log = os.open(run.path / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            code = guarded(work)
            sys.stderr.flush()
        finally:
            os._exit(code)
    return pid


def end_of(run: RunFolder, name: str, pid: int) -> dict[str, Any]:
    """Exit code (minus the signal's number if one ended it), last line printed, checkpoints' names and last step."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    printed = (run.path / f"{name}.log").read_text().strip().splitlines()
    last = run.path / "checkpoints" / "last.ckpt"
    return {
        "code": code,
        "line": printed[-1] if printed else "",
        "files": sorted(path.name for path in (run.path / "checkpoints").glob("*")),
        "step": read_checkpoint(last)["global_step"] if last.exists() else None,
        "digest": digest.read_text() if (digest := run.path / "digest0").exists() else None,
    }


def scenario(root: Path, name: str, before: Callable[[], None] = lambda: None, **options: Any) -> dict[str, Any]:
    """A run with a fault, then the same run continued without it."""
    run = RunFolder.create(root, "spt", name)

    def faulty() -> None:
        before()
        train(run, **options)

    def whole() -> None:
        train(run, **{key: value for key, value in options.items() if not key.startswith("at_")})

    first = end_of(run, "first", fork(run, "first", faulty))
    return {"first": first, "resumed": end_of(run, "second", fork(run, "second", whole))}


def two_processes(root: Path, name: str, at_step: Callable[..., Any]) -> list[dict[str, Any]]:
    """Both ranks of a gloo run."""
    run = RunFolder.create(root, "spt", name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pids = []
    for rank in ("0", "1"):
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": "0"}
        pids.append(fork(run, rank, lambda: train(run, at_step, devices=2, strategy="ddp"), **world))
    return [end_of(run, str(rank), pid) for rank, pid in enumerate(pids)]


def run_all(root: Path) -> dict[str, Any]:
    term, interrupt = signal.SIGTERM, signal.SIGINT
    return {
        "none": scenario(root, "none"),
        "none, accumulating": scenario(root, "none2", accumulate_grad_batches=2),
        "SIGTERM": scenario(root, "term", at_step=signal_at(9, term)),
        "SIGTERM on an epoch's last batch": scenario(root, "term last", at_step=signal_at(11, term)),
        "SIGTERM on the last batch of all": scenario(root, "term end", at_step=signal_at(17, term)),
        "SIGTERM before any save": scenario(root, "term first", at_step=signal_at(1, term)),
        "SIGTERM in validation": scenario(root, "term val", at_validation=signal_at_validation),
        "SIGTERM while accumulating": scenario(root, "acc", at_step=signal_at(4, term), accumulate_grad_batches=2),
        "Ctrl-C in a terminal": scenario(root, "int", at_step=signal_at(9, interrupt, group=True), workers=2),
        "two signals": scenario(root, "two", at_step=two_signals),
        "kill -9 in a save": scenario(root, "kill", kill_in_third_save),
        "NaN loss": scenario(root, "nan", at_step=nan_loss),
        "NaN gradient": scenario(root, "nan grad", at_step=nan_gradient),
        "infinite loss": scenario(root, "inf", at_step=infinite_gradient_then_none),
        "NaN loss before any save": scenario(root, "nan early", at_step=nan_loss, save_every=100),
        "ranks: NaN on one": two_processes(root, "ddp nan", nan_loss),
        "ranks: SIGTERM on one": two_processes(root, "ddp term", signal_at(9, term, rank=1)),
    }


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every scenario, run once for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "guard"
    root.mkdir(exist_ok=True)
    with (root / "log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        if not (root / "outcome.json").exists():
            subprocess.run([sys.executable, __file__, str(root)], stdout=log, stderr=log, timeout=500)
    assert (root / "outcome.json").exists(), (root / "log").read_text()[-2000:]
    return json.loads((root / "outcome.json").read_text())


INTERRUPTED = "error: interrupted at step {}; resume with: spt train --resume x"


@pytest.mark.parametrize(
    ("case", "code", "step"),
    [
        ("SIGTERM", 143, 10),
        ("SIGTERM on an epoch's last batch", 143, 12),
        ("SIGTERM on the last batch of all", 143, 18),
        ("SIGTERM before any save", 143, 2),
        ("SIGTERM in validation", 143, 6),
        ("SIGTERM while accumulating", 143, 5),
        ("Ctrl-C in a terminal", 130, 10),
    ],
)
def test_signal_finishes_the_step_and_leaves_a_resumable_run(
    outcome: dict[str, Any], case: str, code: int, step: int
) -> None:
    first, resumed = outcome[case]["first"], outcome[case]["resumed"]
    assert (first["code"], first["line"]) == (code, INTERRUPTED.format(step))
    assert first["step"] == step, "saved at the step that the line names"
    assert first["digest"] is None, "the lines after the training were not reached"
    whole = outcome["none, accumulating" if "accumulating" in case else "none"]["first"]
    assert (resumed["code"], resumed["digest"]) == (0, whole["digest"])
    assert "last-v1.ckpt" not in resumed["files"]


def test_second_signal_leaves_at_once(outcome: dict[str, Any]) -> None:
    first, resumed = outcome["two signals"]["first"], outcome["two signals"]["resumed"]
    assert first["code"] == 130
    assert "interrupted by a second signal" in first["line"]
    assert first["step"] == 4, "the checkpoint of before"
    assert resumed["digest"] == outcome["none"]["first"]["digest"]


def test_kill_in_the_middle_of_a_save(outcome: dict[str, Any]) -> None:
    """Saves: best and last at step 4, then the best of step 8 dies half written."""
    first, resumed = outcome["kill -9 in a save"]["first"], outcome["kill -9 in a save"]["resumed"]
    assert first["code"] == -signal.SIGKILL
    assert first["step"] == 4
    assert [name for name in first["files"] if ".tmp-" in name], "it died while the temporary file was there"
    assert resumed["digest"] == outcome["none"]["first"]["digest"]
    assert not [name for name in resumed["files"] if ".tmp-" in name]


@pytest.mark.parametrize(
    ("case", "what"), [("NaN loss", "the loss"), ("NaN gradient", "a gradient"), ("infinite loss", "the loss")]
)
def test_nan_stops_before_it_reaches_the_weights(outcome: dict[str, Any], case: str, what: str) -> None:
    first, resumed = outcome[case]["first"], outcome[case]["resumed"]
    assert first["code"] == 1
    assert first["line"].startswith(f"error: {what} is not finite at step 10 (epoch 1, learning rate 0.01); ")
    assert "last good checkpoint: " in first["line"]
    assert "last.ckpt (step 8); try a lower learning rate" in first["line"]
    assert first["step"] == 8, "nothing was saved on the way out"
    assert resumed["digest"] == outcome["none"]["first"]["digest"]


def test_nan_without_a_checkpoint(outcome: dict[str, Any]) -> None:
    first = outcome["NaN loss before any save"]["first"]
    assert first["code"] == 1
    assert "last good checkpoint: none yet; " in first["line"]


def test_ranks_stop_together(outcome: dict[str, Any]) -> None:
    """Whichever rank it is that has cause to, and one message is enough."""
    first, second = outcome["ranks: NaN on one"]
    assert (first["code"], second["code"]) == (1, 1)
    assert first["line"].startswith("error: the loss is not finite at step 10 ")
    assert not second["line"].startswith("error: ")
    first, second = outcome["ranks: SIGTERM on one"]
    assert (first["code"], first["line"], first["step"]) == (143, INTERRUPTED.format(10), 10)
    assert second["code"] == 143 and not second["line"].startswith("error: ")


def test_uninterrupted_run(outcome: dict[str, Any]) -> None:
    """What the other runs are compared with; the accumulating one shows that the comparison can fail."""
    none, accumulating = outcome["none"]["first"], outcome["none, accumulating"]["first"]
    assert (none["code"], none["step"]) == (0, 16)
    assert len(none["digest"]) == 64
    assert none["digest"] != accumulating["digest"]


@pytest.mark.parametrize(("loss", "stops"), [(1.0, False), (math.inf, False), (math.nan, True)])
def test_loss_scaling_may_overflow(loss: float, stops: bool) -> None:
    """With a gradient scaler (16-mixed, GPU only) infinite gradients are steps that it skips; a NaN loss is the end."""
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.tensor([math.inf])
    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=lambda tensor, reduce_op: tensor)
    trainer: Any = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=object()),
        **{"strategy": strategy, "global_step": 3, "current_epoch": 0, "checkpoint_callbacks": []},
    )
    guard, optimizer = StopOnNaN(), torch.optim.SGD([weight], lr=0.1)
    guard.on_before_backward(trainer, Net(None, None), torch.tensor(loss))
    if stops:
        with pytest.raises(UserError, match=r"the loss is not finite at step 3 "):
            guard.on_before_optimizer_step(trainer, Net(None, None), optimizer)
    else:
        guard.on_before_optimizer_step(trainer, Net(None, None), optimizer)


def test_signals_are_given_back(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    train(RunFolder.create(tmp_path, "spt", "x"), max_epochs=1)
    assert {number: signal.getsignal(number) for number in before} == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    (folder / "outcome.json").write_text(json.dumps(run_all(folder)))
