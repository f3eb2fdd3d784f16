"""The attention scores of a network, whatever its attention: logits as they enter the softmax.

Shapes: B batch, H heads, N tokens (Swin: windows in B, NesT: (B, H, T, N, N) with T blocks).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SOFTMAXES: tuple[Callable[..., Any], ...] = (F.softmax, torch.softmax, Tensor.softmax)


class _Softmaxes(TorchFunctionMode):
    """Notes what every softmax over maps of tokens is given; that of class scores has fewer axes."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in SOFTMAXES and args[0].dim() >= 4:
            self.logits.append(args[0].detach())
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def attention_logits(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits (B, H, N, N) of every attention layer in order, relative bias and mask included.

    Fused attention, which shows no scores, is put aside for the call.
    """
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    training = model.training
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        with _Softmaxes() as noted:
            model.eval()(images)
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
        model.train(training)
    return noted.logits
