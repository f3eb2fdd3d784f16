"""The authors' optimiser groups and learning rates for ImageNet (section 4.1; the rule is that of their code).

Three AdamW groups: weights with decay, biases and one-dimensional parameters without, and the weights of the offset
convolutions with decay and a hundredth of the rate. Their biases stay in the second group at the full rate.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from paperkit.training.optim import OptimConfig, Schedule, build

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
    """The three groups as AdamW takes them, each with its peak rate; an empty one is left out."""
    parameters = dict(model.named_parameters())
    options = {
        "decay": dict(lr=recipe.lr, weight_decay=recipe.weight_decay),
        "no_decay": dict(lr=recipe.lr, weight_decay=0.0),
        "offset": dict(lr=recipe.lr * recipe.offset_lr_multi, weight_decay=recipe.weight_decay),
    }
    return [
        dict(name=group, params=[parameters[name] for name in names], **options[group])
        for group, names in group_names(model).items()
        if names
    ]


def make_optimizer(model: nn.Module, recipe: Recipe, steps_per_epoch: int) -> tuple[Optimizer, Schedule]:
    """AdamW, or what the recipe asks for, over the three groups, and its schedule, at the rate of iteration 0.

    The warm-up is linear; the cosine counts from iteration 0, so the rate drops a little where the warm-up ends.
    Iterations 0 and 1 both run at the warm-up rate: the first update happens after iteration 0, for iteration 0.
    """
    adam = "adam" in recipe.optimizer
    config = OptimConfig(
        name=recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas if adam else None,
        eps=recipe.eps if adam else None,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=recipe.warmup_lr,
        min_lr=recipe.min_lr,
        lag=1,
    )
    return build(parameter_groups(model, recipe), config, steps_per_epoch, recipe.epochs)
