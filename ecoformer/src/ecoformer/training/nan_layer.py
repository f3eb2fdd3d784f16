"""Where in a network a number ceased to be finite, for the line of a run that stopped at one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError


@contextmanager
def naming_its_layer(network: nn.Module, last: Callable[[], Tensor | None]) -> Iterator[None]:
    """Adds to the error of a run that stopped at a NaN the layer where it arose.

    Args:
        last: what the network was given in the step under way.
    """
    try:
        yield
    except UserError as error:
        place = first_bad_layer(network, last()) if "not finite at" in str(error) else ""
        if not place:
            raise
        raise UserError(f"{error}; {place}", everywhere=error.everywhere) from None


@torch.no_grad()
def first_bad_layer(network: nn.Module, inputs: Tensor | None) -> str:
    """In words, the first layer whose output is not finite for these inputs; else the first whose gradient is not.

    First in the order of the backward pass, for a gradient. Empty if there is none.
    """
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not found and not bool(torch.isfinite(out).all()):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    try:
        if inputs is not None:
            network(inputs.to(next(network.parameters()).device))
    except UserError as error:  # a fit that cannot be made on such numbers says so, with its layer
        return str(error)
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"the first layer without finite outputs is {found[0]}"
    bad = [n for n, p in network.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    return f"the gradient ceases to be finite at {bad[-1]}" if bad else ""
