"""Learning rate by epoch as the released loop really runs it (specification: reference file ``lr_schedule``)."""

from __future__ import annotations

import math


def released_lr(
    epoch: int,
    *,
    epochs: int = 100,
    lr: float = 1e-3,
    min_lr: float = 1e-5,
    warmup_lr: float = 1e-6,
    warmup_epochs: int = 10,
) -> float:
    """Learning rate in force during ``epoch`` (from 0), constant within it.

    The released scheduler is stepped with the number of the epoch that has ended, so the first two epochs both run at
    ``warmup_lr`` and everything later lags by one; the cosine counts from epoch 0, warm-up included.
    """
    t = max(epoch - 1, 0)
    if t < warmup_epochs:
        return warmup_lr + t * (lr - warmup_lr) / warmup_epochs
    if t >= epochs:
        return min_lr
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * t / epochs))
