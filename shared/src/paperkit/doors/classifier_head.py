"""timm's `reset_classifier`, for networks that keep what `save_pretrained` writes in step with it."""

from collections.abc import Callable
from typing import Any

from torch import nn


def replace_head(
    model: Any, num_classes: int, global_pool: str | None, initialise: Callable[[nn.Module], object]
) -> None:
    """Gives `model.head` as many outputs as there are classes, on the device of the weights; 0 leaves it out.

    Args:
        model: with `num_features`, `num_classes`, `global_pool` and `head`.
        global_pool: None leaves it as it is.
        initialise: sets the weights of a fresh layer.
    """
    model.num_classes = num_classes
    model.global_pool = model.global_pool if global_pool is None else global_pool
    place = next(model.parameters()).device
    model.head = nn.Linear(model.num_features, num_classes).to(place) if num_classes else nn.Identity()
    model.head.apply(initialise)
    config = getattr(model, "_hub_mixin_config", None)
    if isinstance(config, dict):  # what save_pretrained writes
        config.update(num_classes=num_classes, global_pool=model.global_pool)
