"""The switches of `paperkit.training.savings` turned on: in a model, an optimiser, a trainer, a training step."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging
from timm.layers import PatchDropout
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from paperkit.data.seeding import generators_kept
from paperkit.errors import UserError
from paperkit.training.savings import EMA, Savings


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


class Averaging(EMAWeightAveraging):
    """Lightning's average, which until `start_step` is a copy of the trained weights (there it is their first value).

    What is saved in a step holds the average of that step: Lightning calls the callbacks that save after this one.

    Args:
        decay: share of the average that a step keeps.
        start_step: optimiser steps before the averaging begins.
    """

    def __init__(self, decay: float, start_step: int = 0) -> None:
        super().__init__(decay=decay)
        self.start_step = start_step

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning copies the module before it moves to its device, and would average there."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One update per optimiser step; the first one copies."""
        if self._average_model is not None and trainer.global_step <= self.start_step:
            self._average_model.n_averaged.zero_()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning would give the module the average here; what is saved last is the state to go on from."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The module gets the average, also where all steps were done before this start of the run."""
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)


def callbacks(ema: EMA) -> list[Callback]:
    """The averaging, if it is asked for; `averaging` of `paperkit.training.trainer.make_trainer`."""
    return [] if ema.decay is None else [Averaging(ema.decay, ema.start_step)]


class SAM(Optimizer):
    """Sharpness-aware minimisation around any optimiser (Foret et al., ICLR 2021, algorithm 1).

    It steps with the gradient found at w + rho g / |g|, where g is the gradient at w; |g| is over all parameters.

    It costs a second forward and backward pass. Both passes see the same random numbers (dropout, mixup). The closure
    must zero the gradients before its backward pass, as Lightning's does; without a closure there is no second
    gradient, which is why neither accumulated batches nor a gradient scaler go together with it.

    Args:
        base: the optimiser that makes the step; its parameter groups and its state are this one's.
        rho: length of the way up, usually 0.05.
    """

    def __init__(self, base: Optimizer, rho: float) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.base, self.rho = base, rho
        self.param_groups, self.state = base.param_groups, base.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Two calls of `closure` and one step of the base; returns the loss of the first call, at w."""
        if closure is None:
            raise TypeError("SAM needs a closure that computes the loss and its gradients")
        closure = torch.enable_grad()(closure)
        parameters = (p for group in self.param_groups for p in group["params"])
        devices = {p.device for p in parameters if p.device.type == "cuda"}
        with generators_kept(), torch.random.fork_rng(devices=list(devices)):
            loss = closure()
        before = [(p, p.clone(), gradient) for p, gradient in self._gradients()]
        norm = get_total_norm([gradient for *_, gradient in before])
        for p, _, gradient in before:
            p.add_(gradient * (self.rho / (norm + 1e-12)).to(p.device))
        closure()
        for p, weights, _ in before:
            p.copy_(weights)
        self.base.step()
        return loss

    def _gradients(self) -> list[tuple[nn.Parameter, Tensor]]:
        return [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]

    def state_dict(self) -> dict[str, Any]:
        """The base optimiser's."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the base optimiser."""
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state


def sharpened(optimizer: Optimizer, savings: Savings) -> Optimizer:
    """The optimiser, inside `SAM` if that is asked for."""
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
        `keep_hardest` of the images and their labels, in the order of the batch; all of them when the switch is off.
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
