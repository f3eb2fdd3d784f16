"""The stages of a run: which network each trains, and for how long.

Cross-layer binarization (section 3.3): first the attention modules, MLPs float; then the MLPs as well. Optimiser and
learning rates begin anew with each stage.
"""

from dataclasses import dataclass
from typing import Literal

from bivit.models.binarize import TRAININGS, BinaryConfig, stage_config
from paperkit.errors import UserError

Order = Literal["clb", "one_step", "two_steps", "depth"]


@dataclass(frozen=True)
class ScheduleConfig:
    """The stages.

    Args:
        order: `clb`, the paper's: attention, then MLPs; `one_step`; `two_steps`, the classical: activations, then
            weights; or `depth` (ours): a quarter of the blocks more with each stage.
    """

    order: Order = "clb"


@dataclass(frozen=True)
class Stage:
    """One of them.

    Attributes:
        name: its folder. binary: what is binary in it. epochs: its length.
    """

    name: str
    binary: BinaryConfig
    epochs: int


def stages(config: BinaryConfig, order: Order, epochs: int) -> list[Stage]:
    """The stages of a run of `epochs` in all, shared evenly; what does not divide goes to the last.

    Raises:
        UserError: an order that has nothing to do in one of its stages, or fewer epochs than stages.
    """
    count = TRAININGS[order]
    if epochs < count:
        raise UserError(f"max_epochs {epochs}: schedule.order {order} has {count} stages, of one epoch each at least")
    if count > 1 and config.attention == "float":
        raise UserError(f"schedule.order {order} and attention float: take one_step")
    each, rest = divmod(epochs, count)
    lengths = [each] * (count - 1) + [each + rest]
    return [Stage(f"stage_{i}", stage_config(config, order, i), length) for i, length in enumerate(lengths, 1)]
