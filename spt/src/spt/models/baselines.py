"""Baselines beside LoRA and adapters that need code of their own: VPT-Deep and AdaptFormer.

Shapes: B batch, N tokens, C channels, P prompts, r bottleneck.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Prompts(nn.Module):
    """VPT-Deep (Jia et al., ECCV 2022): every block gets P trained tokens of its own behind the class token."""

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        blocks = model.blocks
        width = model.embed_dim
        self.tokens = nn.Parameter(torch.empty(len(blocks), count, width).uniform_(-0.1, 0.1))  # type: ignore[arg-type, call-overload]
        for index, block in enumerate(blocks):  # type: ignore[arg-type]
            block.register_forward_pre_hook(lambda _, inputs, i=index: self._enter(i, inputs))
            block.register_forward_hook(lambda _, inputs, output: self._leave(output))

    def _enter(self, index: int, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = inputs
        prompts = self.tokens[index].expand(x.shape[0], -1, -1)
        return torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1), *rest

    def _leave(self, output: Tensor) -> Tensor:
        count = self.tokens.shape[1]
        return torch.cat([output[:, :1], output[:, 1 + count :]], dim=1)


class Bottlenecks(nn.Module):
    """AdaptFormer (Chen et al., NeurIPS 2022): `mlp(x) + 0.1 up(relu(down(x)))` in every block, `up` zero at first."""

    def __init__(self, model: nn.Module, rank: int, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = scale
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width = model.embed_dim
        for index, block in enumerate(model.blocks):  # type: ignore[arg-type]
            self.down.append(nn.Linear(width, rank))  # type: ignore[arg-type]
            self.up.append(nn.Linear(rank, width))  # type: ignore[arg-type]
            nn.init.zeros_(self.up[index].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.up[index].bias)  # type: ignore[arg-type]
            block.mlp.register_forward_hook(lambda _, inputs, output, i=index: output + self._beside(i, inputs[0]))

    def _beside(self, index: int, x: Tensor) -> Tensor:
        return self.scale * self.up[index](torch.relu(self.down[index](x)))


def add_prompts(model: nn.Module, count: int) -> nn.Module:
    """Freezes `model` but for its head and gives every block P prompts; returns it."""
    _freeze(model).add_module("prompts", Prompts(model, count))
    return model


def add_bottlenecks(model: nn.Module, rank: int) -> nn.Module:
    """Freezes `model` but for its head and puts a bottleneck beside every MLP; returns it."""
    _freeze(model).add_module("bottlenecks", Bottlenecks(model, rank))
    return model


def _freeze(model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "head" in name:
            parameter.requires_grad_(True)
    return model
