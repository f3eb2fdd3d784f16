"""Saves on a full disk, into a folder that cannot be written, and killed at every point: nothing finished is lost.

Each fault happens to a forked child, which ends as the command line would.
"""

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from paperkit.command.cli import guarded
from paperkit.errors import UserError
from paperkit.files import atomic as atomic_files
from paperkit.files import weights as checkpoints
from paperkit.files.runs import RunFolder, remove_stale_temporaries
from paperkit.files.seal import Piece
from paperkit.files.weights import read_checkpoint, read_weights, save_checkpoint, save_weights
from paperkit.results.metrics import Metrics, Row
from paperkit.training.checkpoint_io import AtomicCheckpointIO, describe_newest_good

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # a fork takes no other thread along


def ended(work: Callable[[], object]) -> tuple[int, str]:
    """Exit code (minus the signal that ended it) and printed text of a child that does `work`."""
    with tempfile.TemporaryFile("w+") as log:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                sys.stdout = sys.stderr = log
                code = guarded(lambda: (work(), 0)[1])
                log.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        log.seek(0)
        return code, log.read()


def content(step: int, size: int = 10) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((size,), float(step))}, "global_step": step}


class Net(pl.LightningModule):
    """Grows: each step adds a buffer of 40 kB to what a checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.register_buffer(f"history{self.global_step}", torch.zeros(10_000))
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder: Path) -> None:
    """Four steps, the checkpoint written after each."""
    keeper = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_steps=4, callbacks=[keeper], plugins=[AtomicCheckpointIO()], **quiet)
    trainer.fit(Net(), DataLoader(torch.randn(16, 4), batch_size=4))


def with_full_disk(work: Callable[[], object], limit: int = 100_000) -> Callable[[], object]:
    """`work` where no file can grow beyond `limit` bytes, which a write notices as it notices a full disk."""

    def limited() -> object:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return work()

    return limited


# --- full disk --------------------------------------------------------------------------------------------------------


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """The one loss that Lightning's own writer has: the file that was to be replaced."""
    last = tmp_path / "last.ckpt"
    save_checkpoint(last, content(3))
    code, printed = ended(with_full_disk(lambda: AtomicCheckpointIO().save_checkpoint(content(4, 100_000), last)))
    assert code == 1
    assert printed == f"error: cannot write {last}: File too large; last good checkpoint: {last} (step 3)\n"
    assert read_checkpoint(last)["global_step"] == 3
    assert list(tmp_path.iterdir()) == [last]


def test_full_disk_without_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "first.ckpt"
    _, printed = ended(with_full_disk(lambda: AtomicCheckpointIO().save_checkpoint(content(1, 100_000), path)))
    assert printed.endswith("first.ckpt: File too large; last good checkpoint: none yet\n")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_in_a_run(tmp_path: Path) -> None:
    """The third file does not fit any more; that of step 2 is named, and reads."""
    code, printed = ended(with_full_disk(lambda: train(tmp_path)))
    last = tmp_path / "last.ckpt"
    assert code == 1
    assert printed.splitlines()[-1] == (
        f"error: cannot write {last}: File too large; last good checkpoint: {last} (step 2)"
    )
    assert read_checkpoint(last)["global_step"] == 2
    assert list(tmp_path.iterdir()) == [last]


def test_full_disk_keeps_weights_and_results(tmp_path: Path) -> None:
    weights, results = tmp_path / "w.safetensors", tmp_path / "metrics.json"
    save_weights(weights, {"w": torch.ones(3)})
    Metrics("spt", [0], 1.0, [Row("a", "b", [1.0])]).write(results)
    long = Metrics("spt", [0], 1.0, [Row("a", "b", [1.0])] * 2000)
    for path, write in (
        (weights, lambda: save_weights(weights, {"w": torch.ones(100_000)})),
        (results, lambda: long.write(results)),
    ):
        code, printed = ended(with_full_disk(write))
        assert (code, printed) == (1, f"error: cannot write {path}: File too large\n")
    assert read_weights(weights)["w"].tolist() == [1, 1, 1]
    assert len(Metrics.read(results).rows) == 1
    assert sorted(tmp_path.iterdir()) == [results, weights]


# --- folder that cannot be written ------------------------------------------------------------------------------------


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder of this user that every other may read; pytest's own lets no other user in."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def as_nobody(work: Callable[[], object]) -> Callable[[], object]:
    def dropped() -> object:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return work()

    return dropped


@as_root
def test_read_only_folder(readable: Path) -> None:
    """Lightning's own writer returns here without a word and without a file."""
    last, new = readable / "last.ckpt", readable / "new.ckpt"
    save_checkpoint(last, content(3))
    for path in (last, new):
        code, printed = ended(as_nobody(lambda path=path: AtomicCheckpointIO().save_checkpoint(content(4), path)))
        assert code == 1
        assert printed == f"error: cannot write {path}: Permission denied; last good checkpoint: {last} (step 3)\n"
    assert read_checkpoint(last)["global_step"] == 3
    assert list(readable.iterdir()) == [last]


@as_root
def test_read_only_folder_in_a_run(readable: Path) -> None:
    code, printed = ended(as_nobody(lambda: train(readable)))
    assert code == 1
    assert printed.splitlines()[-1].startswith(
        f"error: cannot write {readable}/last.ckpt: Permission denied; last good"
    )


@as_root
def test_read_only_run_folder(readable: Path) -> None:
    run = RunFolder.create(readable, "spt", "x")

    def lock() -> None:
        with run.lock():
            pass

    for work, what in (
        (lambda: RunFolder.create(readable, "spt"), "make the run folder"),
        (lock, "lock the run folder"),
    ):
        code, printed = ended(as_nobody(work))
        assert code == 1
        assert printed.startswith(f"error: cannot {what} {run.path.parent}")
        assert printed.endswith(": Permission denied\n")


@as_root
def test_unreadable_checkpoint(readable: Path) -> None:
    save_checkpoint(readable / "last.ckpt", content(3))
    (readable / "last.ckpt").chmod(0o600)
    code, printed = ended(as_nobody(lambda: read_checkpoint(readable / "last.ckpt")))
    assert (code, printed) == (1, f"error: cannot read {readable}/last.ckpt: Permission denied\n")


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_in_mid_write(seal: Callable[..., list[Piece]]) -> Callable[..., Iterator[Piece]]:
    def pieces(data: bytes) -> Iterator[Piece]:
        whole = b"".join(seal(data))
        yield whole[: len(whole) // 2]
        die()

    return pieces


@pytest.mark.parametrize("point", ["write", "fsync", "replace", "sync of the folder"])
@pytest.mark.parametrize("name", ["last.ckpt", "weights.safetensors"])
def test_kill_in_a_save_leaves_the_old_file_or_the_new(tmp_path: Path, name: str, point: str) -> None:
    run = RunFolder.create(tmp_path, "spt", "x")
    path = run.path / "checkpoints" / name

    def save(step: int) -> None:
        if name == "last.ckpt":
            save_checkpoint(path, content(step, 20_000))
        else:
            save_weights(path, content(step, 20_000)["state_dict"])

    def killed_save() -> None:
        if point == "write":
            checkpoints.seal_zip = dying_in_mid_write(checkpoints.seal_zip)  # type: ignore[assignment]
            checkpoints.seal_safetensors = dying_in_mid_write(checkpoints.seal_safetensors)  # type: ignore[assignment]
        elif point == "sync of the folder":
            atomic_files._sync_folder = die
        else:
            setattr(atomic_files.os, point, die)
        save(2)

    save(1)
    code, _ = ended(killed_save)
    assert code == -signal.SIGKILL
    found = float(read_weights(path)["w"][0])
    assert found == (2 if point == "sync of the folder" else 1)
    temporaries = list(path.parent.glob("*.tmp-*"))
    assert len(temporaries) == (0 if point == "sync of the folder" else 1)
    with run.lock():  # what a resumed run does first
        assert list(path.parent.iterdir()) == [path]
    save(3)
    assert float(read_weights(path)["w"][0]) == 3


def test_half_written_file_is_not_taken_for_the_last_good_one(tmp_path: Path) -> None:
    """Newest first: a torn file (another program's), one with NaN, and the temporary file are all passed over."""
    for age, (name, step) in enumerate([("a.ckpt", 1), ("b.ckpt", 2), ("c.ckpt", 3), ("d.ckpt", 4)]):
        save_checkpoint(tmp_path / name, content(step))
        os.utime(tmp_path / name, (age, age))
    torn = (tmp_path / "d.ckpt").read_bytes()[:-100]
    (tmp_path / "d.ckpt").write_bytes(torn)
    (tmp_path / f"e.ckpt.tmp-{os.getpid()}").write_bytes(torn)
    save_checkpoint(tmp_path / "c.ckpt", {"state_dict": {"w": torch.tensor([1.0, float("nan")])}, "global_step": 3})
    assert describe_newest_good([tmp_path / "absent", tmp_path]) == f"{tmp_path}/b.ckpt (step 2)"
    assert describe_newest_good([]) == "none yet"
    torch.save({"meta": {}}, tmp_path / "mm.pth")
    assert describe_newest_good([tmp_path]) == f"{tmp_path}/mm.pth", "no step is told where the file has none"
    remove_stale_temporaries(tmp_path)
    assert not list(tmp_path.glob("*.tmp-*"))


# --- Lightning's reading side -----------------------------------------------------------------------------------------


def test_resume_refuses_what_is_no_checkpoint_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with pytest.raises(UserError, match=r"no checkpoint at"):
        AtomicCheckpointIO().load_checkpoint(path)
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"no checkpoint of a run: it holds no state_dict"):
        AtomicCheckpointIO().load_checkpoint(path)
    save_checkpoint(path, content(3))
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["global_step"] == 3
    with pytest.raises(TypeError, match=r"storage_options"):
        AtomicCheckpointIO().save_checkpoint(content(3), path, storage_options={})


def test_old_checkpoints_are_removed_by_lightning(tmp_path: Path) -> None:
    """save_top_k deletes through the plugin as well."""
    save_checkpoint(tmp_path / "x.ckpt", content(1))
    AtomicCheckpointIO().remove_checkpoint(tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())
