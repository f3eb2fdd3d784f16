"""What a step of training minimises: the teacher's distribution, the same with BiBERT's directions, or the labels.

The teacher is a float network in eval mode and sees the images that the student sees, augmented and mixed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bivit.method.distillation import direction_matching, distribution_loss, relations
from paperkit.errors import UserError


@dataclass(frozen=True)
class DistillationConfig:
    """The loss.

    Args:
        loss: `distribution` (ReActNet's, the paper's for all classification), `directions` (the same and BiBERT's
            direction matching), or `labels` (cross entropy with mixed and smoothed labels, for float teachers).
        teacher: weights of the float network of the same name; without, those that the student starts from.
        mixup, cutmix: alpha of each, 0 is off. switch_prob: share of batches that get CutMix where both are on.
        smoothing: of labels, where they are used.
    """

    loss: Literal["distribution", "directions", "labels"] = "distribution"
    teacher: str | None = None
    mixup: float = 0.8
    cutmix: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.1


class Distillation(nn.Module):
    """Student and images to the loss against a teacher, which is no part of the state dict.

    Args:
        teacher: float network, put into eval mode.
        directions: match directions as well.
    """

    def __init__(self, teacher: nn.Module, directions: bool = False) -> None:
        super().__init__()
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple hides it from the module's own parts
        self.directions = directions

    @property
    def teacher(self) -> nn.Module:
        """In eval mode whatever the student's mode is."""
        return self._teacher[0]

    def move(self, device: torch.device) -> None:
        """Puts the teacher onto a device."""
        self.teacher.to(device)

    def forward(self, student: nn.Module, images: Tensor) -> Tensor:
        """The loss, a scalar, of images (B, 3, S, S)."""
        with _noted(student, self.directions) as ours:
            logits = student(images)
        with torch.no_grad(), _noted(self.teacher, self.directions) as theirs:
            wanted = self.teacher(images)
        loss = distribution_loss(logits.float(), wanted.float())
        return loss + direction_matching(ours, theirs) if self.directions else loss


@contextmanager
def _noted(model: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Fills a list, while the block runs, with relations of q, k and v and the hidden state of every block."""
    found: list[Tensor] = []

    def note_relations(heads: int) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            tokens = out.flatten(0, -3)  # blocks and windows are so many images
            found.extend(relations(x.unflatten(-1, (heads, -1)).transpose(1, 2).float()) for x in tokens.chunk(3, -1))

        return hook

    def note(module: nn.Module, args: Any, out: Tensor) -> None:
        found.append(out.float())

    hooks = []
    for name in attention_names(model) if wanted else ():
        attention: Any = model.get_submodule(name)
        hooks.append(attention.qkv.register_forward_hook(note_relations(attention.num_heads)))
        hooks.append(model.get_submodule(name.rpartition(".")[0]).register_forward_hook(note))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attention_names(model: nn.Module) -> list[str]:
    """Names of the attention layers whose directions are matched: those that make q, k and v by one linear `qkv`.

    Raises:
        UserError: there is none.
    """
    names = [name for name, module in model.named_modules() if hasattr(module, "qkv") and hasattr(module, "num_heads")]
    if not names:
        raise UserError(f"distillation.loss directions: {type(model).__name__} has no attention with one linear qkv")
    return names
