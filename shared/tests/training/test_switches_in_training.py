"""Trainings under the survey's switches: killed and resumed bit for bit, and on two processes as on one.

Real trainings in forked children of one helper process (this file as a script), which writes what came of each.
"""

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy

from paperkit.data.digits import DigitsData
from paperkit.data.resumable import SeedStep
from paperkit.errors import Interrupted
from paperkit.training.checkpoint_io import AtomicCheckpointIO
from paperkit.training.classification import make_mixup
from paperkit.training.guard import SaveOnSignal, StopOnNaN
from paperkit.training.optim import OptimConfig, build, clip_gradients, lightning_dict, step_schedule
from paperkit.training.savings import EMA, Savings, check
from paperkit.training.switches import apply, callbacks, hardest, sharpened

pytestmark = pytest.mark.xdist_group("switches")  # one process waits for the trainings, the other goes on
SEED, EPOCHS, STEPS_PER_EPOCH = 3, 3, 5

# switch: options of the run
SWITCHES: dict[str, dict[str, Any]] = {
    "none": {},
    "checkpointing": {"savings": Savings(checkpointing=True)},
    "attention eager": {"savings": Savings(attention="eager")},
    "channels_last": {"savings": Savings(channels_last=True)},
    "patch_drop": {"savings": Savings(patch_drop=0.5)},
    "keep_hardest": {"savings": Savings(keep_hardest=0.5)},
    "sam_rho": {"savings": Savings(sam_rho=0.05)},
    "sam_rho with mixup": {"savings": Savings(sam_rho=0.05), "mixup": 0.8},
    "ema": {"ema": EMA(0.9)},
    "ema from a later step": {"ema": EMA(0.9, start_step=7)},
    "ema that never begins": {"ema": EMA(0.9, start_step=1000)},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "accumulate_grad_batches": {"accumulate_grad_batches": 2},
    "gradient_clip_val": {"gradient_clip_val": 0.1},
    "size_schedule": {"size_schedule": {0: 4, 1: 8}},
    "fused": {"optim": OptimConfig(lr=3e-3, fused=True)},
    "fused, clipped in bf16": {
        "optim": OptimConfig(lr=3e-3, fused=True),
        **{"precision": "bf16-mixed", "gradient_clip_val": 0.1},
    },
    "agc": {"optim": OptimConfig(lr=3e-3, agc=0.01)},
    **{name: {"optim": OptimConfig(name=name, lr=1e-3)} for name in ("sgd", "lamb", "lars", "lion", "muon")},
    "adafactorbv": {"optim": OptimConfig(name="adafactorbv", lr=1e-3)},
    "several": {
        "savings": Savings(checkpointing=True, patch_drop=0.25, channels_last=True),
        **{"ema": EMA(0.9), "precision": "bf16-mixed", "accumulate_grad_batches": 2, "size_schedule": {0: 4, 1: 8}},
    },
}


class Training(pl.LightningModule):
    """A ViT with dropout on the digits, put together as a paper does it."""

    def __init__(self, savings: Savings, optim: OptimConfig, mixup: float, dynamic: bool, dropout: float) -> None:
        super().__init__()
        size = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", **size, in_chans=1, num_classes=10, proj_drop_rate=dropout, dynamic_img_size=dynamic
        )
        apply(self.vit, savings)
        self.savings, self.optim = savings, optim
        self.mix = make_mixup(mixup, 0.0, 0.0, 0.1, 10)

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.vit(images), labels, reduction="none")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch if self.mix is None else self.mix(*batch)
        return self.losses(*hardest(self.vit, self.losses, images, labels, self.savings)).mean()

    def configure_optimizers(self) -> Any:
        optimizer, schedule = build(self.vit, self.optim, STEPS_PER_EPOCH, EPOCHS)
        return lightning_dict(sharpened(optimizer, self.savings), schedule)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip_gradients(self, optimizer, self.optim, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        step_schedule(scheduler, self.trainer)


class KillAt(pl.Callback):
    def __init__(self, batches: int, number: int) -> None:
        self.batches, self.number = batches, number

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        if trainer.current_epoch * STEPS_PER_EPOCH + index == self.batches:
            os.kill(os.getpid(), self.number)


def train(
    folder: Path,
    kill: int | None = None,
    number: int = signal.SIGKILL,
    savings: Savings | None = None,
    ema: EMA | None = None,
    optim: OptimConfig | None = None,
    mixup: float = 0.0,
    size_schedule: dict[int, int] | None = None,
    batch: int = 200,
    dropout: float = 0.1,
    **options: Any,
) -> None:
    """Trains in `folder`, or resumes what lies there, and writes the final weights."""
    torch.manual_seed(SEED)
    savings, ema, optim = savings or Savings(), ema or EMA(), optim or OptimConfig(lr=3e-3)
    options = {"accelerator": "cpu", "devices": 1, **options}
    check(savings, options, ema=ema, mixing=mixup > 0)
    last = folder / "last.ckpt"
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=2),
            SeedStep(SEED),
            StopOnNaN(),
            *callbacks(ema),
            SaveOnSignal(),
            *([] if kill is None else [KillAt(kill, number)]),
        ],
        **options,
    )
    training = Training(savings, optim, mixup, size_schedule is not None, dropout)
    data = DigitsData(batch, seed=SEED, val_images=190, size_schedule=size_schedule)
    trainer.fit(training, datamodule=data, ckpt_path=last if last.exists() else None)
    if trainer.global_rank == 0:
        torch.save(training.state_dict(), folder / "weights.pt")


def child(work: Callable[[], None], **environment: str) -> int:
    """A forked process; its id."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            signal.alarm(200)
            os.environ.update(environment)
            work()
            code = 0
        except Interrupted as error:
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def digest(folder: Path) -> str | None:
    if not (folder / "weights.pt").exists():
        return None
    weights = torch.load(folder / "weights.pt")
    return hashlib.sha256(b"".join(p.numpy().tobytes() for p in weights.values())).hexdigest()


def killed_and_whole(root: Path, name: str) -> dict[str, Any]:
    """Both runs of a switch; the kill comes in the middle of the second epoch."""
    options, ends = SWITCHES[name], {}
    ends["whole"] = end_of(child(lambda: train(root / f"{name} whole", **options)))
    ends["killed"] = end_of(child(lambda: train(root / name, kill=8, **options)))
    ends["resumed"] = end_of(child(lambda: train(root / name, **options)))
    return {"ends": ends, "digests": [digest(root / f"{name} whole"), digest(root / name)]}


def told_to_stop(root: Path, name: str) -> list[int]:
    """SIGTERM between two periodic saves, then the rest."""
    options = SWITCHES[name]
    first = end_of(child(lambda: train(root / f"{name} told", kill=8, number=signal.SIGTERM, **options)))
    return [first, end_of(child(lambda: train(root / f"{name} told", **options)))]


TOGETHER = {"accumulate_grad_batches": 2, "ema": EMA(0.9), "savings": Savings(checkpointing=True), "dropout": 0.0}


def two_processes(root: Path) -> list[int]:
    """Accumulation, averaging and checkpointing on two gloo processes, and on one with the doubled batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    pids = [
        child(lambda: train(root / "two", batch=50, devices=2, strategy="ddp", **TOGETHER), LOCAL_RANK=rank, **world)
        for rank in ("0", "1")
    ]
    pids += [child(lambda: train(root / "one", batch=100, **TOGETHER))]
    return [end_of(pid) for pid in pids]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every training, run once for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "switches"
    root.mkdir(exist_ok=True)
    with (root / "log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        if not (root / "outcome.json").exists():
            subprocess.run([sys.executable, __file__, str(root)], stdout=log, stderr=log, timeout=500)
    assert (root / "outcome.json").exists(), (root / "log").read_text()[-2000:]
    return {"root": root, **json.loads((root / "outcome.json").read_text())}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_killed_run_ends_with_the_same_bits(outcome: dict[str, Any], switch: str) -> None:
    found = outcome[switch]
    assert found["ends"] == {"whole": 0, "killed": -signal.SIGKILL, "resumed": 0}
    whole, resumed = found["digests"]
    assert whole == resumed


def test_an_average_is_exact_after_a_signal_too(outcome: dict[str, Any]) -> None:
    """What a signal saves must hold the average of the step that it finished."""
    assert outcome["told"] == [143, 0]
    assert digest(outcome["root"] / "ema told") == outcome["ema"]["digests"][0]


def test_until_it_begins_an_average_is_the_trained_weights(outcome: dict[str, Any]) -> None:
    assert outcome["ema that never begins"]["digests"][0] == outcome["none"]["digests"][0]


def test_every_switch_but_the_exact_ones_changes_the_run(outcome: dict[str, Any]) -> None:
    """A switch that is not connected would resume exactly as well."""
    digests = {name: outcome[name]["digests"][0] for name in SWITCHES}
    plain = digests.pop("none")
    same = {name for name, found in digests.items() if found == plain}
    assert same <= {"checkpointing", "channels_last", "ema that never begins"}  # the same arithmetic
    others = [found for name, found in digests.items() if name not in same]
    assert len(set(others)) == len(others)


def test_two_processes_end_as_one_with_the_doubled_batch(outcome: dict[str, Any]) -> None:
    assert outcome["two processes"] == [0, 0, 0]
    one, two = (torch.load(outcome["root"] / name / "weights.pt") for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=0, atol=2e-5, msg=name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    done: dict[str, Any] = {name: killed_and_whole(folder, name) for name in SWITCHES}
    done |= {"two processes": two_processes(folder), "told": told_to_stop(folder, "ema")}
    (folder / "outcome.json").write_text(json.dumps(done))
