"""The switches of :mod:`paperkit.training.savings` turned on: in a model, an optimiser, a trainer, a training step."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from timm.layers import PatchDropout
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.optim import Optimizer

from paperkit.errors import UserError
from paperkit.training.averaging import Averaging
from paperkit.training.savings import EMA, Savings
from paperkit.training.sharpness import SAM


def apply(model: nn.Module, savings: Savings) -> None:
    """Turns on, in place, the switches that live in the model.

    Raises:
        UserError: naming the switch that this model cannot take.
    """
    name = type(model).__name__
    if savings.checkpointing:
        enable = getattr(model, "set_grad_checkpointing", None)
        try:
            if enable is None:
                raise AssertionError
            enable(True)
        except AssertionError:  # timm's way of saying that an architecture has none
            raise UserError(f"checkpointing: {name} has no activation checkpointing") from None
    if savings.attention == "eager":
        fused = [module for module in model.modules() if hasattr(module, "fused_attn")]
        if not fused:
            raise UserError(f"attention eager: {name} has no fused attention that could be switched off")
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]  # a plain bool in timm's attention layers
    if savings.patch_drop:
        vits = [module for module in model.modules() if isinstance(module, VisionTransformer)]
        if not vits:
            raise UserError(f"patch_drop {savings.patch_drop} needs a plain ViT, whose tokens do not depend on a grid; "
                            f"{name} is none")  # fmt: skip
        for vit in vits:
            vit.patch_drop = PatchDropout(savings.patch_drop, num_prefix_tokens=vit.num_prefix_tokens)
    if savings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
        model.register_forward_pre_hook(_to_channels_last)
    if savings.compile:
        model.compile()  # in place: torch.compile(model) would change the keys


def _to_channels_last(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.to(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.ndim == 4 else x for x in inputs
    )


def callbacks(ema: EMA) -> list[Callback]:
    """The averaging, if it is asked for; it belongs before :class:`paperkit.training.guard.SaveOnSignal`."""
    return [] if ema.decay is None else [Averaging(ema.decay, ema.start_step)]


def sharpened(optimizer: Optimizer, savings: Savings) -> Optimizer:
    """The optimiser, inside :class:`paperkit.training.sharpness.SAM` if that is asked for."""
    return SAM(optimizer, savings.sam_rho) if savings.sam_rho else optimizer


@torch.no_grad()
def hardest(
    module: nn.Module, losses: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor, savings: Savings
) -> tuple[Tensor, Tensor]:
    """The images with the highest losses, by a pass in evaluation mode without gradients (selective backpropagation,
    Jiang et al., 2019, with a fixed share).

    Args:
        module: whose modules are put into evaluation mode for the pass, and back.
        losses: images (B, C, H, W), labels (B,) -> loss of each image (B,).

    Returns:
        ``keep_hardest`` of the images and their labels, in the order of the batch; all of them when the switch is off.
    """
    if savings.keep_hardest == 1:
        return images, labels
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        order = losses(images, labels).topk(max(1, round(savings.keep_hardest * len(images)))).indices.sort().values
    finally:
        for part, training in modes.items():
            part.training = training
    return images[order], labels[order]
