"""Small trainings that are killed, told to stop, or diverge: the bits, the files and the lines they leave."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from paperkit.errors import Interrupted, UserError
from paperkit.files.weights import read_weights
from paperkit.training.stages import sigterm_noted, train_stage, train_steps

STEPS, LR = 12, 0.05


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 6, generator=draw)
    return inputs, (inputs[:, :3].sum(1) > 0).long()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2))


def parts(kind: str) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A model, its optimiser, and a schedule: torch's one-cycle, which moves the betas too, or a function of steps."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    if kind == "one cycle":
        return model, optimizer, OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS)
    return model, optimizer, lambda step: LR / (step + 1)


def stage(
    folder: Path, kind: str, at: Callable[[int], tuple[Tensor, Tensor]] = batch, save_every: int = 4
) -> nn.Module:
    model, optimizer, schedule = parts(kind)
    train_stage(model, folder, optimizer, schedule, at, STEPS, save_every=save_every)
    return model


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("weights.safetensors", "losses.json")}


def signal_at(step: int, number: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    def at(now: int) -> tuple[Tensor, Tensor]:
        if now == step:
            os.kill(os.getpid(), number)
        return batch(now)

    return at


def in_child(work: Callable[[], Any]) -> int:
    """How a forked process ended: its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            work()
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("kind", ["one cycle", "function"])
def test_it_is_the_plain_loop(kind: str, tmp_path: Path) -> None:
    """Bit for bit what a loop written out gives."""
    trained = stage(tmp_path, kind)
    model, optimizer, schedule = parts(kind)
    losses = []
    for step in range(STEPS):
        if kind == "function":
            optimizer.param_groups[0]["lr"] = schedule(step)
        inputs, labels = batch(step)
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if kind == "one cycle":
            schedule.step()
        losses.append(loss.item())
    assert json.loads((tmp_path / "losses.json").read_text()) == losses
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
        assert torch.equal(value, read_weights(tmp_path / "weights.safetensors")[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.json", "tensorboard", "weights.safetensors"]


@pytest.mark.parametrize("kind", ["one cycle", "function"])
@pytest.mark.parametrize("step", [2, 6, 11])  # before any checkpoint, between two, in the last step
def test_killed_and_begun_again_gives_the_same_bits(kind: str, step: int, tmp_path: Path) -> None:
    stage(tmp_path / "whole", kind)
    cut = tmp_path / "cut"
    assert in_child(lambda: stage(cut, kind, signal_at(step, signal.SIGKILL))) == -signal.SIGKILL
    assert (cut / "last.ckpt").exists() == (step > 4) and not (cut / "weights.safetensors").exists()
    seen: list[int] = []

    def noted(now: int) -> tuple[Tensor, Tensor]:
        seen.append(now)
        return batch(now)

    stage(cut, kind, noted)
    assert seen == list(range(step - step % 4, STEPS)), "steps of the checkpoint are not done again"
    assert files(cut) == files(tmp_path / "whole")
    assert not (cut / "last.ckpt").exists()


@pytest.mark.parametrize("step", [0, 5, 11])
def test_sigterm_ends_after_the_step_with_a_checkpoint(step: int, tmp_path: Path) -> None:
    stage(tmp_path / "whole", "one cycle")
    cut, former = tmp_path / "cut", signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"interrupted after step {step + 1} of cut") as raised:
        stage(cut, "one cycle", signal_at(step, signal.SIGTERM))
    assert raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == former
    stage(cut, "one cycle", signal_at(step, signal.SIGKILL))  # that step is not done again
    assert files(cut) == files(tmp_path / "whole")


def test_a_signal_between_two_stages_reaches_the_former_handler(tmp_path: Path) -> None:
    """A handler that stayed would swallow it, and every later stage would still be trained."""

    def work() -> None:
        stage(tmp_path / "first", "function")
        os.kill(os.getpid(), signal.SIGTERM)
        stage(tmp_path / "second", "function")

    assert in_child(work) == -signal.SIGTERM
    assert not (tmp_path / "second").exists()


def test_a_signal_after_the_last_look_reaches_the_former_handler() -> None:
    """It comes when the last step is done and looked at, and the handler is still there."""
    received: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with sigterm_noted() as noted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert noted == [signal.SIGTERM] and not received
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)


def test_a_loss_that_is_no_number_leaves_the_checkpoint(tmp_path: Path) -> None:
    def broken(step: int) -> tuple[Tensor, Tensor]:
        inputs, labels = batch(step)
        return (inputs * float("nan") if step == 6 else inputs), labels

    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="the loss is not finite at step 6 of cut") as raised:
        stage(tmp_path / "cut", "one cycle", broken)
    assert f"last good checkpoint: {tmp_path / 'cut' / 'last.ckpt'} (step 4); try a lower --lr" in str(raised.value)
    assert signal.getsignal(signal.SIGTERM) == former
    with pytest.raises(UserError, match="last good checkpoint: none yet"):
        stage(tmp_path / "early", "one cycle", broken, save_every=100)
    stage(tmp_path / "cut", "one cycle")
    stage(tmp_path / "whole", "one cycle")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_stage_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    trained = stage(tmp_path, "function")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    told: list[int] = []

    def never(step: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("a step was done")

    model, optimizer, schedule = parts("function")
    train_stage(model, tmp_path, optimizer, schedule, never, STEPS, advance=told.append)
    assert told == [STEPS]
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_stage_killed_before_its_clean_up_is_cleaned_up(tmp_path: Path) -> None:
    """Between the weights, which make it done, and the removal of its checkpoint."""
    stage(tmp_path, "function")
    (tmp_path / "last.ckpt").write_bytes(b"of the last steps")
    stage(tmp_path, "function")
    assert not (tmp_path / "last.ckpt").exists()


def test_the_loop_alone_tells_of_steps_and_keeps_no_file(tmp_path: Path) -> None:
    model, optimizer, schedule = parts("function")
    told: list[int] = []
    finished: list[int] = []
    losses = train_steps(
        model, optimizer, schedule, batch, STEPS, name="arm", advance=told.append, after_step=finished.append
    )
    assert told == [0, *[1] * STEPS] and finished == list(range(1, STEPS + 1))
    assert len(losses) == STEPS and losses[-1] < losses[0]
    with pytest.raises(Interrupted, match="interrupted after step 3 of arm"):
        train_steps(model, optimizer, schedule, signal_at(2, signal.SIGTERM), STEPS, name="arm")
    assert not list(tmp_path.iterdir())


def test_another_loss_takes_the_place_of_cross_entropy(tmp_path: Path) -> None:
    """A stage's losses are those of the function that it was given."""
    model, optimizer, schedule = parts("function")
    inputs, labels = batch(0)
    first = F.mse_loss(model(inputs)[:, 0], labels.float()).item()
    train_stage(model, tmp_path, optimizer, schedule, batch, STEPS, loss_of=lambda y, t: F.mse_loss(y[:, 0], t.float()))
    assert json.loads((tmp_path / "losses.json").read_text())[0] == pytest.approx(first)
