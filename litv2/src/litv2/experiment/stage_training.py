"""One network of the embedded experiment trained to the end: killed at any point, it goes on to the same bits.

Nothing random is stored: batch ``i`` is a function of (seed, i). A stage's folder holds ``last.ckpt`` while it trains,
then ``weights.safetensors``, ``losses.json`` and TensorBoard's file; what is there is not done again.
"""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.functional.classification import binary_auroc

from paperkit.errors import Interrupted, UserError
from paperkit.files.runs import write_atomic
from paperkit.files.weights import load_strict, read_checkpoint, read_weights, save_checkpoint, save_weights

SAVE_EVERY = 50  # steps; a file of 200 kB takes milliseconds

Batch = tuple[Tensor, Tensor]


class _Signals:
    """Notes SIGTERM, which ends training after the current step."""

    def __init__(self) -> None:
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number


def train_stage(
    model: nn.Module, folder: Path, batch: Callable[[int], Batch], steps: int, lr: float, advance: Callable[[int], None]
) -> None:
    """Train ``model`` in place with AdamW and a one-cycle schedule.

    Args:
        folder: of this stage.
        batch: step number -> inputs and labels.
        steps: how many.
        lr: the schedule's peak.
        advance: told of every step, those already done included.

    Raises:
        UserError: a loss that is not finite; the line names the step and the last good checkpoint.
        Interrupted: after SIGTERM, with a checkpoint written.
    """
    done, last = folder / "weights.safetensors", folder / "last.ckpt"
    if done.exists():
        load_strict(model, read_weights(done), str(done))
        advance(steps)
        return
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    first, losses = 0, []
    if last.exists():
        kept = read_checkpoint(last)
        load_strict(model, kept["model"], str(last))
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        first, losses = kept["step"], kept["losses"]
    advance(first)

    def save(step: int) -> None:
        # A scheduler's state holds a method of its own class, which a safe reader refuses; it is built anew.
        states = {key: value for key, value in schedule.state_dict().items() if not callable(value)}
        states.pop("_anneal_func_type", None)
        content = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), schedule=states)
        save_checkpoint(last, dict(content, step=step, losses=losses))

    signals = _Signals()
    model.train()
    for step in range(first, steps):
        inputs, labels = batch(step)
        loss = F.cross_entropy(model(inputs), labels)
        if not loss.isfinite():
            kept_at = f"{last} (step {step - step % SAVE_EVERY})" if last.exists() else "none yet"
            raise UserError(
                f"the loss is not finite at step {step} of {folder.name} (learning rate "
                f"{optimizer.param_groups[0]['lr']:.3g}); last good checkpoint: {kept_at}; try a lower --lr"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        advance(1)
        if signals.received:
            save(step + 1)
            raise Interrupted(f"interrupted after step {step + 1}", 128 + signals.received)
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < steps:
            save(step + 1)
    _finish(model.eval(), folder, losses)


def _finish(model: nn.Module, folder: Path, losses: list[float]) -> None:
    """The weights come last: where they are, everything is."""
    from torch.utils.tensorboard import SummaryWriter

    write_atomic(folder / "losses.json", json.dumps(losses) + "\n")
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for step, loss in enumerate(losses):
            writer.add_scalar("loss", loss, step)
    save_weights(folder / "weights.safetensors", model.state_dict())
    (folder / "last.ckpt").unlink(missing_ok=True)


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Percent of right answers."""
    return 100 * (model.eval()(inputs).argmax(dim=-1) == labels).double().mean().item()


@torch.no_grad()
def ranking(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Percent of pairs of one sample of each of two classes that the network ranks rightly (area under the ROC curve).

    Unlike the accuracy it has no threshold; 50 is chance.
    """
    logits = model.eval()(inputs)
    return 100 * binary_auroc(logits[:, 1] - logits[:, 0], labels).item()


@torch.no_grad()
def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(model.eval()(inputs), labels).item()
