"""Sharpness-aware minimisation around any optimiser (Foret et al., ICLR 2021, algorithm 1)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from paperkit.data.resumable import generators_kept


class SAM(Optimizer):
    """Steps with the gradient found at w + rho g / |g|, where g is the gradient at w; |g| is over all parameters.

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
        """Two calls of ``closure`` and one step of the base; returns the loss of the first call, at w."""
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
