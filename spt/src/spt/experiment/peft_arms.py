"""Arms of HF peft: LoRA, DoRA, AdaLoRA, SHiRA and Supertuning, on separate q, k and v, within the same budget.

Each function takes the plain backbone, the shapes of the matrices that may be tuned (in the order in which the budget
is spent on them) and the budget; it returns the peft model and what it trains beside head and class token.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.data.seeding import seed_of
from spt.method.split_qkv import split_qkv_layers

Shapes = Mapping[str, torch.Size]


def lora(backbone: nn.Module, shapes: Shapes, budget: int, dora: bool = False) -> tuple[nn.Module, int]:
    """LoRA of rank 1 and scale 1; with `dora` a magnitude for each output besides."""
    from peft import LoraConfig

    chosen, spent = _within(shapes, budget, lambda shape: sum(shape) + (shape[0] if dora else 0))
    config = LoraConfig(r=1, lora_alpha=1, target_modules=_paths(chosen), use_dora=dora)
    return _wrapped(split_qkv_layers(copy.deepcopy(backbone)), config), spent


def adalora(backbone: nn.Module, shapes: Shapes, budget: int, steps: int) -> tuple[nn.Module, int]:
    """Starts at rank 2 and ends at rank 1 on average; counted as what remains, r (in + out + 1) for a module."""
    from peft import AdaLoraConfig

    chosen, spent = _within(shapes, budget, lambda shape: sum(shape) + 1)
    config = AdaLoraConfig(
        init_r=2,
        target_r=1,
        tinit=steps // 8,
        tfinal=steps // 4,
        deltaT=1,
        total_step=steps,
        lora_alpha=2,
        target_modules=_paths(chosen),
    )
    return _wrapped(split_qkv_layers(copy.deepcopy(backbone)), config), spent


def shira(
    backbone: nn.Module, shapes: Shapes, budget: int, seed: int, scores: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module, int]:
    """in + out entries of each matrix, as SHiRA of rank 1 requires: the largest `scores`, or peft's random choice."""
    from peft import ShiraConfig

    chosen, spent = _within(shapes, budget, sum)
    model = split_qkv_layers(copy.deepcopy(backbone))
    config: Any = ShiraConfig(r=1, target_modules=_paths(chosen), random_seed=seed_of(seed, 7) % 2**31)
    if scores is not None:
        of_layer = {model.get_submodule(_path(name)): scores[name] for name in chosen}

        def mask(layer: nn.Linear, r: int, **_: Any) -> Tensor:
            score = of_layer[layer]
            found = torch.zeros(score.numel(), dtype=torch.bool)
            found[score.flatten().topk(r * (layer.in_features + layer.out_features)).indices] = True
            return found.reshape(score.shape)

        config.mask_fn = mask
    return _wrapped(model, config), spent


def supertuning(backbone: nn.Module, shapes: Shapes, budget: int) -> tuple[nn.Module, int]:
    """The largest magnitudes of every matrix, as many as the budget gives over all of them."""
    from peft import SupertuningConfig

    share = budget / sum(shape.numel() for shape in shapes.values())
    while True:  # peft rounds the number of each layer, so the share is lowered until the sum fits
        config = SupertuningConfig(target_modules=_paths(list(shapes)), sparsity=1 - share)
        tuned = _wrapped(split_qkv_layers(copy.deepcopy(backbone)), config)
        spent = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        if spent <= budget:
            return tuned, spent
        share *= 0.995


def _within(shapes: Shapes, budget: int, cost: Callable[[torch.Size], int]) -> tuple[list[str], int]:
    """The matrices that fit the budget, in their order, and what they cost."""
    chosen, spent = [], 0
    for name, shape in shapes.items():
        if spent + cost(shape) <= budget:
            chosen.append(name)
            spent += cost(shape)
    return chosen, spent


def _paths(names: list[str]) -> list[str]:
    return [_path(name) for name in names]


def _path(name: str) -> str:
    """`blocks.0.attn.q.weight` -> `blocks.0.attn.qkv.q`, the Linear that holds it."""
    path, operation, _ = name.rsplit(".", 2)
    return f"{path}.qkv.{operation}" if operation in ("q", "k", "v") else f"{path}.{operation}"


def _wrapped(model: nn.Module, config: Any) -> nn.Module:
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config)
