"""Which of the survey's savings joint training cannot take, and which it cannot take together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paperkit.errors import UserError
from paperkit.training.savings import EMA, Savings, check

if TYPE_CHECKING:  # the options of a command are parsed without torch
    from paperkit.data.sizes import SizeSchedule
    from snnet.experiment.settings import ExperimentConfig
    from snnet.training.joint import TrainingConfig

REFUSED = {"compile": "every stitch is a graph of its own, and each step draws another one"}


def check_experiment(config: ExperimentConfig) -> None:
    """For the embedded experiment.

    Raises:
        UserError: naming what does not go together.
    """
    arms = {"keep_hardest": "its middle anchor is also trained by distillation, whose images have no loss of their own"}
    check(config.savings, config.trainer, ema=config.ema, refused={**REFUSED, **arms})


def check_images(
    training: TrainingConfig,
    savings: Savings,
    ema: EMA,
    sizes: SizeSchedule,
    trainer: Mapping[str, Any],
    split_bn: int = 0,
) -> None:
    """For training on real images.

    Raises:
        UserError: naming what does not go together.
    """
    check(
        savings,
        trainer,
        ema=ema,
        mixing=training.mixup > 0 or training.cutmix > 0,
        distillation=training.distillation != "none",
        sizes=sizes.sizes,
        refused=REFUSED,
    )
    sizes.check_length(trainer.get("max_epochs") or 1)
    if savings.keep_hardest < 1 and training.stitches_per_step > 1:
        raise UserError(
            f"keep_hardest {savings.keep_hardest} and stitches_per_step {training.stitches_per_step}: which images are "
            "hard depends on the stitch; train one per step"
        )
    if savings.keep_hardest < 1 and split_bn > 1:
        raise UserError(
            f"keep_hardest {savings.keep_hardest} and split_bn {split_bn}: the parts of a batch would not stay parts"
        )
