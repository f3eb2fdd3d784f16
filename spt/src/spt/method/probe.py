"""Whether everything that is counted as trained can learn: a step that is taken for its graph alone.

A model may read the weight of a layer in a way of its own and never call the layer; what tuning put beside that weight
would then be counted, saved and never trained. Autograd's graph of one loss shows it before the first step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from paperkit.errors import UserError


def tensors_in(output: object) -> Iterator[Tensor]:
    """The tensors of a model's output: a tensor, or lists, tuples and dicts of them (transformers' outputs too)."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from tensors_in(list(output.values()))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from tensors_in(part)


def unreached(model: nn.Module, output: object) -> list[str]:
    """Names of the trained parameters that no gradient of `output` would come to."""
    waiting = [tensor.grad_fn for tensor in tensors_in(output) if tensor.grad_fn is not None]
    seen, reached = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if node.name().startswith("CheckpointFunction"):  # reentrant checkpointing hides what is behind it
            return []
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            reached.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in reached]


def refuse(model: nn.Module, lost: Sequence[str]) -> None:
    """Refuses a tuned model of which some trained parameters, those of `unreached`, have no part in its output.

    Raises:
        UserError: naming the layer.
    """
    if lost:
        layer = lost[0].split(".structured.")[0].rsplit(".sparse_", 1)[0]
        more = f" (and {len(lost) - 1} more parameters)" if len(lost) > 1 else ""
        raise UserError(
            f"{layer} cannot be tuned: {lost[0]}{more} would be counted but gets no gradient, because "
            f"{type(model).__name__} does not call that layer; structured_type lora or none may fit, or another model"
        )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A training step inside the block leaves mode, buffers and random states as they were."""
    kept, mode = [(buffer, buffer.clone()) for buffer in model.buffers()], model.training
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        model.train()
        try:
            yield
        finally:
            model.train(mode)
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)


def probe(model: nn.Module, images: Tensor) -> list[str]:
    """`unreached` of one pass in training mode, after which the model is as it was.

    Args:
        images: (B, 3, H, W); two are enough for any BatchNorm.
    """
    with undisturbed(model):
        return unreached(model, model(images))
