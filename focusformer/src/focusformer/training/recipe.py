"""What training a supernet and fine-tuning one of its sub-networks have in common: mixing, decay, DDP.

Shapes: B batch, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from paperkit.errors import UserError


@dataclass
class MixingConfig:
    """The loss of a step; the defaults are AutoFormer's.

    Args:
        mixup, cutmix: alpha of each; 0 is off.
        switch_prob: share of batches that get CutMix where both are on.
        smoothing: of the labels.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.1

    def check(self, batch_size: int) -> None:
        """Refuses a batch that cannot be mixed.

        Raises:
            UserError: an odd one.
        """
        if (self.mixup or self.cutmix) and batch_size % 2:
            raise UserError(f"batch_size {batch_size} and mixup or CutMix: images are mixed in pairs, take an even one")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Without decay: what has one dimension, class token and positions; the tables of relative position have it."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = {name for name, p in named if p.ndim <= 1 or name in ("pos_embed", "cls_token")}
    return [
        {"params": [p for name, p in named if name not in free], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in free], "weight_decay": 0.0},
    ]


def strategy_of(options: Mapping[str, Any]) -> Any:
    """The Trainer's strategy; `ddp` must expect layers that a step leaves out, whose gradients stay untouched.

    Not replaced by zero gradients of what is unused: those would decay weights that no architecture has used yet.

    Raises:
        UserError: a strategy that shards parameters, of which a step uses slices.
    """
    strategy = options.get("strategy") or "auto"
    if any(word in str(strategy) for word in ("fsdp", "deepspeed", "model_parallel")):
        raise UserError(f"strategy {strategy} shards parameters, of which each step uses a slice: take ddp")
    several = strategy == "ddp" or (strategy == "auto" and _processes(options) > 1)
    return DDPStrategy(find_unused_parameters=True) if several else strategy


def _processes(options: Mapping[str, Any]) -> int:
    """How many the options ask for, as Lightning counts them."""
    chosen = {key: options[key] for key in ("accelerator", "devices", "num_nodes") if key in options}
    return pl.Trainer(**chosen, logger=False, enable_checkpointing=False, enable_progress_bar=False).world_size
