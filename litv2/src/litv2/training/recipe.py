"""The authors' optimiser groups and learning-rate schedule for ImageNet (section 4.1; the rule is that of their code).

Three AdamW groups: weights with decay, biases and one-dimensional parameters without, and the weights of the offset
convolutions with decay and a hundredth of the rate. Their biases stay in the second group at the full rate.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from paperkit.errors import UserError

BATCH_OF_BASE_RATE = 512


@dataclass
class Recipe:
    """Optimiser and schedule of the paper; the defaults are those of 300 epochs at 224 px.

    Args:
        lr: rate for a total batch of 512; multiplied by total batch / 512, like the two below.
        warmup_lr: rate of the first iteration.
        min_lr: rate at the end of the cosine. Absolute: the offset group does not go below it either.
        weight_decay: of weights with two and more dimensions.
        epochs: length of the schedule.
        warmup_epochs: linear warm-up.
        offset_lr_multi: factor on the rate of the offset convolutions' weights.
        betas, eps: of the Adam family; other optimisers have their own.
        optimizer: any of timm's optimisers; the paper's is adamw.
    """

    lr: float = 5e-4
    warmup_lr: float = 5e-7
    min_lr: float = 5e-6
    weight_decay: float = 0.05
    epochs: int = 300
    warmup_epochs: int = 20
    offset_lr_multi: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    optimizer: str = "adamw"

    def scaled(self, total_batch: int) -> "Recipe":
        """The same with its three rates multiplied by total batch / 512."""
        factor = total_batch / BATCH_OF_BASE_RATE
        rates = dict(lr=self.lr * factor, warmup_lr=self.warmup_lr * factor, min_lr=self.min_lr * factor)
        return Recipe(**{**vars(self), **rates})


def group_names(model: nn.Module) -> dict[str, list[str]]:
    """Names of the trainable parameters by group: "decay", "no_decay", "offset"."""
    groups: dict[str, list[str]] = {"decay": [], "no_decay": [], "offset": []}
    rule = getattr(model, "no_weight_decay", None)
    never = rule() if callable(rule) else ()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("conv_offset.weight"):
            groups["offset"].append(name)
        elif parameter.ndim <= 1 or name.endswith(".bias") or name in never:
            groups["no_decay"].append(name)
        else:
            groups["decay"].append(name)
    return groups


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The three groups as AdamW takes them, each with its peak rate under ``base_lr``; an empty one is left out."""
    parameters = dict(model.named_parameters())
    options = {
        "decay": dict(base_lr=recipe.lr, weight_decay=recipe.weight_decay),
        "no_decay": dict(base_lr=recipe.lr, weight_decay=0.0),
        "offset": dict(base_lr=recipe.lr * recipe.offset_lr_multi, weight_decay=recipe.weight_decay),
    }
    return [
        dict(name=group, params=[parameters[n] for n in names], lr=options[group]["base_lr"], **options[group])
        for group, names in group_names(model).items()
        if names
    ]


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """AdamW, or what the recipe asks for, over the three groups, at the rate of iteration 0."""
    family = {"betas": recipe.betas, "eps": recipe.eps} if "adam" in recipe.optimizer else {}
    groups = parameter_groups(model, recipe)
    optimizer: Optimizer = create_optimizer_v2(groups, recipe.optimizer, lr=recipe.lr, **family)  # type: ignore[arg-type]
    for group in optimizer.param_groups:
        group["lr"] = recipe.warmup_lr if recipe.warmup_epochs else group["base_lr"]
    return optimizer


def learning_rate(base: float, recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Rate of a group with peak ``base`` after ``step_update(step)``.

    The warm-up is linear; the cosine counts from iteration 0, so the rate drops a little where the warm-up ends.
    """
    warm, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warm:
        return recipe.warmup_lr + step * (base - recipe.warmup_lr) / warm
    step = min(step, total)
    return recipe.min_lr + (base - recipe.min_lr) * (1 + math.cos(math.pi * step / total)) / 2


class OfficialSchedule:
    """Sets every group's rate; call :meth:`step` after each optimiser step, as the authors call ``step_update``.

    Iterations 0 and 1 both run at the warm-up rate: the first update happens after iteration 0, for iteration 0.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> None:
        if steps_per_epoch < 1:
            raise UserError(f"steps_per_epoch {steps_per_epoch} is below 1")
        self.optimizer, self.recipe, self.steps_per_epoch, self.done = optimizer, recipe, steps_per_epoch, 0

    def step(self) -> None:
        """One iteration further."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(group["base_lr"], self.recipe, self.done, self.steps_per_epoch)
        self.done += 1

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint must hold."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a checkpoint; the rates stand in the optimiser's own state."""
        self.done = state["done"]


def rates(optimizer: Optimizer) -> Iterable[float]:
    """The current rate of each group."""
    return [group["lr"] for group in optimizer.param_groups]
