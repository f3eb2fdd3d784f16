"""A small network trained to the end in one process: killed at any point, it goes on to the same bits.

For embedded experiments, which train many small networks one after the other, each a stage with its files. Nothing
random is stored: batch i is a function of i (and of the caller's seed), so a checkpoint holds the model, the optimiser,
the schedule, and how far it came. A model that draws random numbers in a step (dropout) has to be seeded by `batch`.

A paper uses either of two functions. `train_stage` keeps a folder: `last.ckpt` while it trains, then `losses.json`,
TensorBoard's file and `weights.safetensors`; what is there is not done again.

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    train_stage(model, folder, optimizer, schedule, batch, steps, advance=advance)

`train_steps` is the loop alone, for a paper that names its files itself:

    if not done.is_file():
        train_steps(model, optimizer, rate, batch, steps, name="pre-training", last=run / "pretraining.ckpt")
        save_weights(done, model.state_dict())
"""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from paperkit.errors import Interrupted, UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import load_strict, read_checkpoint, read_weights, save_checkpoint, save_weights

SAVE_EVERY = 50  # steps; a file of 200 kB takes milliseconds

Batch = Callable[[int], tuple[Tensor, Tensor]]
"""Step -> inputs (B, ...) and labels (B,)."""

Loss = Callable[[Any, Tensor], Tensor]
"""What the model gives and labels -> a scalar."""

Schedule = LRScheduler | Callable[[int], float]
"""torch's scheduler over the optimiser, moved on after each step; or step -> its learning rate, for all groups."""


def nothing(steps: int) -> None:
    """The default of what is told of steps."""


def train_steps(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,
    batch: Batch,
    steps: int,
    *,
    name: str,
    last: Path | None = None,
    save_every: int = SAVE_EVERY,
    advance: Callable[[int], None] = nothing,
    after_step: Callable[[int], None] = nothing,
    remedy: str = "try a lower --lr",
    loss_of: Loss = F.cross_entropy,
) -> list[float]:
    """Trains `model` in place, and returns the loss of every step.

    Args:
        schedule: the learning rate.
        batch: the data of a step.
        steps: how many.
        name: of the stage, for the lines that end it early.
        last: the checkpoint, read if it is there and written every `save_every` steps and at a signal; None keeps none,
            for a stage so short that it begins anew.
        advance: told of the steps that are done: at the start those of a checkpoint, then each.
        after_step: called with the number of finished steps; what it keeps by itself must be a function of them.
        remedy: what to try against a loss that is not finite.
        loss_of: the loss; cross entropy by default.

    Raises:
        UserError: a loss that is not finite, with the step and the last good checkpoint; nothing is written.
        Interrupted: after SIGTERM, with a checkpoint written. A signal that comes in the last step counts as well.
    """
    scheduler = schedule if isinstance(schedule, LRScheduler) else None
    first, losses = 0, []
    if last is not None and last.exists():
        kept = read_checkpoint(last, advice=None)
        load_strict(model, kept["model"], str(last))
        optimizer.load_state_dict(kept["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(kept["schedule"])
        first, losses = kept["step"], kept["losses"]
    advance(first)

    def save(step: int) -> None:
        if last is not None:
            states = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), schedule=_plain_state(scheduler))
            save_checkpoint(last, dict(states, step=step, losses=losses))

    model.train()
    with sigterm_noted() as received:
        for step in range(first, steps):
            if not isinstance(schedule, LRScheduler):
                for group in optimizer.param_groups:
                    group["lr"] = schedule(step)
            inputs, labels = batch(step)
            loss = loss_of(model(inputs), labels)
            if not loss.isfinite():
                good = f"{last} (step {step - step % save_every})" if last is not None and last.exists() else "none yet"
                raise UserError(
                    f"the loss is not finite at step {step} of {name} (learning rate "
                    f"{optimizer.param_groups[0]['lr']:.3g}); last good checkpoint: {good}; {remedy}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(loss.item())
            after_step(step + 1)
            advance(1)
            if received:
                save(step + 1)
                raise Interrupted(f"interrupted after step {step + 1} of {name}", 128 + received[0])
            if (step + 1) % save_every == 0 and step + 1 < steps:
                save(step + 1)
    return losses


def train_stage(
    model: nn.Module,
    folder: Path,
    optimizer: Optimizer,
    schedule: Schedule,
    batch: Batch,
    steps: int,
    *,
    save_every: int = SAVE_EVERY,
    advance: Callable[[int], None] = nothing,
    after_step: Callable[[int], None] = nothing,
    remedy: str = "try a lower --lr",
    loss_of: Loss = F.cross_entropy,
) -> None:
    """Trains `model` in place, or reads the weights of a stage that is done, and keeps the results in `folder`.

    Arguments and errors are those of `train_steps`.
    """
    done, last = folder / "weights.safetensors", folder / "last.ckpt"
    if done.exists():
        load_strict(model, read_weights(done, advice=None), str(done))
        last.unlink(missing_ok=True)  # of a run that was killed between the two
        advance(steps)
        return
    losses = train_steps(
        model,
        optimizer,
        schedule,
        batch,
        steps,
        name=folder.name,
        last=last,
        save_every=save_every,
        advance=advance,
        after_step=after_step,
        remedy=remedy,
        loss_of=loss_of,
    )
    write_atomic(folder / "losses.json", json.dumps(losses) + "\n")
    _write_events(folder / "tensorboard", losses)
    save_weights(done, model.eval().state_dict())  # last: where the weights are, everything is
    last.unlink(missing_ok=True)


@contextlib.contextmanager
def sigterm_noted() -> Iterator[list[int]]:
    """Within the block SIGTERM is noted in the list; at its end the former handler is back, for what follows it.

    A signal that the block ended without an answer to is sent again, to the former handler.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python takes signals nowhere else
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    former = signal.signal(signal.SIGTERM, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, former)
    if received:
        signal.raise_signal(signal.SIGTERM)


def _plain_state(scheduler: LRScheduler | None) -> dict[str, Any]:
    """Without methods of the scheduler's own class, which a safe reader refuses; it is built anew."""
    if scheduler is None:
        return {}
    state = {key: value for key, value in scheduler.state_dict().items() if not callable(value)}
    state.pop("_anneal_func_type", None)
    return state


def _write_events(folder: Path, losses: list[float]) -> None:
    from torch.utils.tensorboard import SummaryWriter  # late: it takes a second

    with SummaryWriter(str(folder)) as writer:
        for step, loss in enumerate(losses):
            writer.add_scalar("loss", loss, step)
