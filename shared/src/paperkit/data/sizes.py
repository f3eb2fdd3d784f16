"""Small images first: the size of the training images as a function of the epoch (progressive resizing).

Tan and Le, ICML 2021 (EfficientNetV2) raise the size in stages. Evaluation is always at the full size.
"""

from collections.abc import Mapping

import torch
from torch import nn

from paperkit.errors import UserError


class SizeSchedule:
    """`size = schedule.at(epoch)`: a step function, so that a resumed run goes on with the same sizes.

    Args:
        stages: first epoch of a stage -> image size in pixels; None or empty is the full size throughout.
        full: size of evaluation, which the last stage must have.

    Raises:
        UserError: if no stage begins at epoch 0, or the last one is not of the full size.
    """

    def __init__(self, stages: Mapping[int, int] | None, full: int) -> None:
        self.stages = dict(sorted((stages or {0: full}).items()))
        given = ", ".join(f"{epoch}: {size}" for epoch, size in self.stages.items())
        if min(self.stages) != 0:
            raise UserError(f"size_schedule {{{given}}} must begin with epoch 0")
        if list(self.stages.values())[-1] != full:
            raise UserError(f"size_schedule {{{given}}} must end with the full size, {full}")
        if min(self.stages.values()) < 1:
            raise UserError(f"size_schedule {{{given}}} has a size below 1")

    @property
    def sizes(self) -> list[int]:
        """Every size once, the full one last."""
        full = list(self.stages.values())[-1]
        return [*sorted(set(self.stages.values()) - {full}), full]

    def at(self, epoch: int) -> int:
        """Image size in `epoch`."""
        return self.stages[max(first for first in self.stages if first <= epoch)]

    def check_length(self, epochs: int) -> None:
        """The full size must have at least the last quarter of the run, or its results are those of small images.

        Raises:
            UserError: if it has less.
        """
        last = max(self.stages)
        if len(self.stages) > 1 and last > 0.75 * epochs:
            raise UserError(
                f"size_schedule reaches the full size in epoch {last} of {epochs}; the last quarter of a run at least "
                f"must have it (epoch {int(0.75 * epochs)})"
            )


@torch.no_grad()
def check_sizes(model: nn.Module, sizes: list[int], channels: int = 3) -> None:
    """Runs one empty image of each size through the model.

    Raises:
        UserError: if the model takes images of one size only.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for size in sizes:
            model(torch.zeros(1, channels, size, size, device=next(model.parameters()).device))
    except (AssertionError, RuntimeError, ValueError, UserError) as error:
        raise UserError(
            f"size_schedule does not go together with this {type(model).__name__}: {' '.join(str(error).split())} at "
            f"{size} px; give a timm ViT or Swin dynamic_img_size=True, or take a model without a table of positions"
        ) from None
    finally:
        for module, training in modes.items():
            module.training = training
