"""A run by `make_trainer`, cut off at every kind of moment and moved: what it leaves equals the uninterrupted run's.

The trainings run in forked children, which are killed by kill -9 or SIGTERM at a named hook of a named step.
"""

import csv
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from paperkit.command.cli import guarded
from paperkit.data.resumable import ResumableData, SeededDataset, seeded_loader
from paperkit.errors import UserError
from paperkit.files.weights import read_checkpoint
from paperkit.training.savings import EMA
from paperkit.training.switches import callbacks as averaging
from paperkit.training.trainer import (
    TRAINER_OPTIONS,
    add_trainer_options,
    best_state,
    fit,
    last_evaluation,
    make_trainer,
    trainer_options,
)

STEPS, EPOCHS = 6, 3  # steps of an epoch
SCORES = {6: 0.5, 12: 0.8, 18: 0.6, 3: 0.1, 9: 0.7, 15: 0.2}  # of the evaluation after this step
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "log_every_n_steps": 1}


class Points(ResumableData, pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.points = TensorDataset(torch.randn(50, 8, generator=draw), torch.arange(50) % 3)

    def train_dataloader(self) -> DataLoader[Any]:
        world = self.trainer.world_size if self.trainer else 1
        return seeded_loader(SeededDataset(self.points, 3), self.train_sampler(50, 3, 8 // world))

    def val_dataloader(self) -> DataLoader[Any]:
        return seeded_loader(SeededDataset(self.points, 3), self.eval_sampler(50, 25))


class Net(pl.LightningModule):
    """`at` is told of every hook's name and step: there a test kills."""

    def __init__(self, at: Callable[[str, int], None]) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.at, self.history, self.ended = at, [], []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.at("step", self.global_step)
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.at("validation", self.global_step)
        self.log("val/loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        self.history.append([self.current_epoch, self.global_step])
        self.log("val/score", SCORES[self.global_step])

    def on_train_epoch_end(self) -> None:
        self.at("epoch end", self.global_step)
        self.ended.append([self.current_epoch, self.global_step])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["kept"] = [self.history, self.ended]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history, self.ended = checkpoint["kept"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(folder: Path, at: Callable[[str, int], None], decay: float | None = None, **options: Any) -> None:
    """Trains or goes on; at the end writes what a run reports."""
    torch.manual_seed(3)
    more = {"save_every": options.pop("save_every", 4), "max_epochs": EPOCHS}
    trainer = make_trainer(
        folder,
        {**QUIET, **options},
        3,
        resume_with="demo train --resume x",
        best="val/score",
        csv=True,
        averaging=averaging(EMA(decay)),
        **more,
    )
    net = Net(at)
    fit(trainer, net, Points(), resume=True)
    torch.save([net.state_dict(), net.history, net.ended, last_evaluation(trainer)], folder / "result")
    at("finished", trainer.global_step)


def in_child(folder: Path, at: Callable[[str, int], None], **options: Any) -> int:
    """Exit code of a training in a forked process; minus the signal's number if one ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            signal.alarm(120)
            code = guarded(lambda: train(folder, at, **options))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def never(hook: str, step: int) -> None:
    """The uninterrupted run."""


def at_moment(hook: str, step: int, number: int) -> Callable[[str, int], None]:
    def at(here: str, now: int) -> None:
        if (here, now) == (hook, step):
            os.kill(os.getpid(), number)

    return at


def left_by(folder: Path) -> dict[str, Any]:
    """Everything in the folder but times: result, checkpoints, table of logged values."""
    files = sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "events" not in p.name
    )
    last, best = (read_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    for content in (last, best):  # Lightning's count of evaluation batches, which a run that goes on sets to 0
        content["loops"]["fit_loop"].pop("epoch_loop.val_loop.batch_progress")
    rows = list(csv.DictReader((folder / "csv" / "metrics.csv").open()))
    return {"files": files, "result": torch.load(folder / "result"), "last": last, "best": best, "rows": rows}


def assert_same(first: Any, second: Any, where: str = "") -> None:
    """Equal to the last bit, with the place where they differ."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), f"{where}: {first} {second}"
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}/{place}")
    elif isinstance(first, Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, f"{where}: {first} {second}"


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"decay": 0.9},
    "every second epoch": {"check_val_every_n_epoch": 2},
    "within an epoch": {"val_check_interval": 3},
    "accumulating": {"accumulate_grad_batches": 2, "check_val_every_n_epoch": 2, "save_every": 2},
    "each epoch": {"save_every": None},
}
whole_runs: dict[str, dict[str, Any]] = {}


def whole(name: str, root: Path) -> dict[str, Any]:
    if name not in whole_runs:
        folder = root.parent / f"whole {name}"
        assert in_child(folder, never, **OPTIONS[name]) == 0
        whole_runs[name] = left_by(folder)
    return whole_runs[name]


KILL, TERM = signal.SIGKILL, signal.SIGTERM
MOMENTS = [
    ("plain", "step", 10, KILL),
    ("plain", "step", 9, TERM),
    ("plain", "step", 11, TERM),  # the last of an epoch: its evaluation must not be lost
    ("plain", "step", 17, TERM),  # the last of all
    ("plain", "validation", 12, KILL),
    ("plain", "validation", 12, TERM),
    ("plain", "epoch end", 12, KILL),
    ("plain", "epoch end", 18, TERM),
    ("plain", "finished", 18, KILL),  # all is trained, nothing was reported
    ("averaged", "step", 11, TERM),
    ("averaged", "step", 10, KILL),
    ("averaged", "finished", 18, KILL),
    ("every second epoch", "step", 5, TERM),
    ("every second epoch", "step", 11, TERM),
    ("within an epoch", "step", 8, TERM),
    ("within an epoch", "validation", 9, KILL),
    ("accumulating", "step", 2, TERM),
    ("each epoch", "step", 9, TERM),
    ("each epoch", "validation", 12, KILL),
]


@pytest.mark.parametrize(("name", "hook", "step", "number"), MOMENTS)
def test_cut_off_run_leaves_the_same(tmp_path: Path, name: str, hook: str, step: int, number: int) -> None:
    folder = tmp_path / "run"
    code = in_child(folder, at_moment(hook, step, number), **OPTIONS[name])
    assert code == (128 + number if number == TERM and hook != "finished" else -number)
    assert in_child(folder, never, **OPTIONS[name]) == 0
    assert_same(left_by(folder), whole(name, tmp_path))


def test_two_processes_save_and_leave_together(tmp_path: Path) -> None:
    """A signal on one rank in the last step of an epoch: both leave after its evaluation, and go on to the end."""

    def both(at: Callable[[str, int], None]) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        pids = []
        for rank in (0, 1):
            pid = os.fork()
            if pid == 0:
                code = 99
                try:
                    signal.alarm(120)
                    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
                    os.environ.update(here)
                    chosen = at if rank == 1 else never
                    code = guarded(lambda: train(tmp_path / "run", chosen, devices=2, strategy="ddp"))  # noqa: B023
                finally:
                    os._exit(code)
            pids.append(pid)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    checkpoints = tmp_path / "run" / "checkpoints"
    assert both(at_moment("step", 11, TERM)) == [143, 143]
    assert [read_checkpoint(checkpoints / name)["global_step"] for name in ("last.ckpt", "best.ckpt")] == [12, 12]
    assert both(never) == [0, 0]
    assert [read_checkpoint(checkpoints / name)["global_step"] for name in ("last.ckpt", "best.ckpt")] == [18, 12]
    _, history, ended, measured = torch.load(tmp_path / "run" / "result")
    assert history == ended == [[0, 6], [1, 12], [2, 18]]
    assert measured["val/score"] == pytest.approx(0.6)


def test_table_and_evaluations_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """What the others are compared with: each step's loss, each epoch's evaluation, the best of them."""
    run = whole("plain", tmp_path)
    assert [int(row["step"]) for row in run["rows"] if row["loss"]] == list(range(STEPS * EPOCHS))
    scores = {int(row["step"]): float(row["val/score"]) for row in run["rows"] if row["val/score"]}
    assert scores == pytest.approx({5: 0.5, 11: 0.8, 17: 0.6})
    _, history, ended, measured = run["result"]
    assert history == ended == [[0, 6], [1, 12], [2, 18]]
    assert measured["val/score"] == pytest.approx(0.6)
    assert (run["best"]["global_step"], run["last"]["global_step"]) == (12, 18)
    assert run["best"]["callbacks"]["KeepBest"]["value"] == pytest.approx(0.8)


def test_a_better_file_survives_a_last_that_does_not_know_it(tmp_path: Path) -> None:
    """The best of step 12 is written, the last of step 12 is not: the resumed run's 0.6 must not replace it."""
    run = tmp_path / "run"
    last, best = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    assert in_child(run, at_moment("step", 11, KILL), save_every=4) == -KILL
    before = last.read_bytes()  # of step 8
    assert in_child(run, at_moment("step", 12, KILL), save_every=4) == -KILL
    assert read_checkpoint(best)["global_step"] == 12
    last.write_bytes(before)
    kept = best.read_bytes()
    assert in_child(run, never, save_every=4) == 0
    assert best.read_bytes() == kept


def test_a_moved_run_goes_on_as_if_it_had_stayed(tmp_path: Path) -> None:
    """No checkpoint names its folder, and the resumed run writes the same two files, again and again."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert in_child(first, at_moment("step", 8, TERM)) == 143
    content = (first / "checkpoints" / "last.ckpt").read_bytes() + (first / "checkpoints" / "best.ckpt").read_bytes()
    assert str(tmp_path).encode() not in content
    first.rename(second)
    assert in_child(second, at_moment("step", 14, TERM)) == 143
    assert read_checkpoint(second / "checkpoints" / "last.ckpt")["global_step"] == 15
    second.rename(third)
    assert in_child(third, never) == 0
    assert sorted(path.name for path in (third / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert_same(left_by(third), whole("plain", tmp_path))


def test_best_weights_without_their_prefix(tmp_path: Path) -> None:
    run = whole("plain", tmp_path)
    folder = tmp_path.parent / "whole plain"
    state = best_state(folder)
    assert state is not None and state.keys() == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert_same(state["3.bias"], run["best"]["state_dict"]["network.3.bias"])
    assert best_state(tmp_path / "nothing") is None
    with pytest.raises(UserError, match=r"best\.ckpt holds no weights that begin with 'model.'"):
        best_state(folder, "model.")


def test_save_every_must_be_a_number_of_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save_every 0 must be at least 1"):
        make_trainer(tmp_path, QUIET, 0, resume_with="", save_every=0)


# --- options ----------------------------------------------------------------------------------------------------------


def parsed(words: list[str], **more: Any) -> dict[str, Any]:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    add_trainer_options(parser, **more)
    return trainer_options(parser.parse_args(words).trainer)


def test_options_that_were_given(tmp_path: Path) -> None:
    words = ["--trainer.devices", "2", "--trainer.precision", "16-mixed", "--trainer.limit_train_batches", "0.5"]
    assert parsed(words) == {"devices": 2, "precision": "16-mixed", "limit_train_batches": 0.5}
    assert parsed(["--trainer.limit_train_batches", "3", "--trainer.deterministic", "warn"]) == {
        "limit_train_batches": 3,
        "deterministic": "warn",
    }
    assert parsed(["--trainer.devices", "[0, 1]", "--trainer.gradient_clip_val", "5"]) == {
        "devices": [0, 1],
        "gradient_clip_val": 5.0,
    }
    (tmp_path / "recipe.yaml").write_text("trainer: {devices: auto, max_epochs: 50, precision: 32}\n")
    config = ["--config", str(tmp_path / "recipe.yaml")]
    assert parsed([*config, "--trainer.devices", "1"], defaults={"max_epochs": 30}) == {
        "devices": 1,
        "max_epochs": 50,
        "precision": 32,
    }
    assert parsed([], defaults={"max_epochs": 30}) == {"max_epochs": 30}
    assert trainer_options({"devices": "2", "strategy": None}) == {"devices": 2}


CLASS = {"class_path": "subprocess.Popen", "init_args": {"args": "touch made", "shell": True}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 3),  # where the recipe says it
        ("num_nodes", "two"),
        ("callbacks", []),
        *((name, CLASS) for name in TRAINER_OPTIONS),
        ("devices", [CLASS]),
    ],
)
def test_values_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """Plain values of the right type only; nothing that a file names is built."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"trainer": {name: value}}))
    with pytest.raises(Exception, match=name) as raised:
        parsed(["--config", "recipe.yaml"])
    assert type(raised.value).__name__ in ("ArgumentError", "ParserError")
    assert not (tmp_path / "made").exists()


def test_options_that_an_engine_leaves_out() -> None:
    assert "max_steps" in TRAINER_OPTIONS
    with pytest.raises(Exception, match="max_steps"):
        parsed(["--trainer.max_steps", "3"], skip=["max_steps"])
    assert parsed(["--trainer.val_check_interval", "0.5"], also=["val_check_interval"]) == {"val_check_interval": 0.5}
    with pytest.raises(ValueError, match="no option plugins here"):
        parsed([], defaults={"plugins": 1})


def test_declaring_options_imports_neither_lightning_nor_torch() -> None:
    lines = (
        "import sys, jsonargparse\n"
        "from paperkit.training.trainer import add_trainer_options\n"
        "add_trainer_options(jsonargparse.ArgumentParser())\n"
        "print([name for name in ('torch', 'pytorch_lightning', 'lightning_fabric') if name in sys.modules])\n"
    )
    assert subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True).stdout == "[]\n"
