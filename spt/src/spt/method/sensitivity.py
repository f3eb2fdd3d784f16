"""Sensitivity of every weight: the squared gradient of the task loss (paper section 3.2, equation for s_n = g_n^2).

The first-order gain of tuning one weight by a gradient step is eps * g^2; eps is common to all weights and drops out.
As released: the sum over batches of the squared *batch-mean* gradient, 16 batches of 32 images, one random head.

Each parameter's gradient is squared into its accumulator and freed as soon as the backward pass has made it, so that
beside the weights there is one accumulator of their size and the gradient of one parameter at a time.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.errors import UserError
from paperkit.files.weights import read_metadata, read_weights, save_weights
from spt.method.candidates import find_candidates

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Sensitivities:
    """Sensitivities by candidate, and what they were measured on.

    Attributes:
        values: separate name -> float32 tensor of the parameter's shape, in the order of the separate model.
        identity: architecture and weights fingerprints, images, batches, heads and the options of the pass.
    """

    values: dict[str, Tensor]
    identity: dict[str, str | int | bool] = field(default_factory=dict)


@contextmanager
def squared_gradients(parameters: dict[str, nn.Parameter]) -> Iterator[dict[str, Tensor]]:
    """Accumulates the square of every gradient made inside the block; the gradients themselves are freed at once.

    Args:
        parameters: name -> parameter. `requires_grad` is switched on inside the block and restored.

    Yields:
        name -> float32 accumulator of the parameter's shape, zero at first.
    """
    # float32 whatever the weights are: squares of 1e-5 vanish in float16.
    sums = {name: torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for name, p in parameters.items()}
    before = {name: p.requires_grad for name, p in parameters.items()}

    def hook_for(name: str) -> Callable[[Tensor], None]:
        def square_and_free(parameter: Tensor) -> None:
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                sums[name].addcmul_(gradient, gradient)
                parameter.grad = None

        return square_and_free

    for parameter in parameters.values():
        parameter.requires_grad_(True)
    handles = [p.register_post_accumulate_grad_hook(hook_for(name)) for name, p in parameters.items()]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])


def head_layers(model: nn.Module, head: str) -> list[nn.Linear | nn.Conv2d]:
    """The Linears and convolutions of the classifier, found by the substring `head` in their names."""
    return [m for name, m in model.named_modules() if head in name and isinstance(m, nn.Linear | nn.Conv2d)]


def reset_head(model: nn.Module, head: str = "head", std: float = 0.02) -> None:
    """A fresh random classifier: truncated normal of std 0.02, bias zero (as released)."""
    for layer in head_layers(model, head):
        nn.init.trunc_normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def measure_sensitivities(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    max_batches: int = 16,
    loss: Loss = F.cross_entropy,
    heads: int = 1,
    seed: int = 0,
    per_sample: bool = False,
    eval_mode: bool = False,
    deterministic: bool = False,
    head: str = "head",
    fixed: tuple[str, ...] = ("cls_token",),
) -> Sensitivities:
    """One pass over the first batches of a task; gradients of a fused qkv are split into q, k and v.

    Args:
        model: pre-trained backbone with a random (not zero) head. Weights, mode and gradients are as before on return.
        batches: (images, labels); iterated once per head, so a list or a loader, not a generator, when `heads` > 1.
        max_batches: batches used (released command: 16 of 32 images).
        loss: mean loss of a batch of logits and labels.
        heads: random heads to sum over; the first is the model's own. One head moves a selection as much as the data.
        seed: of drop path and of the further heads.
        per_sample: sum of squared gradients of single images (empirical Fisher) instead of squared batch means.
        eval_mode: no drop path. Default as released: training mode.
        deterministic: evaluation mode and torch's deterministic algorithms, so that a GPU repeats itself too.
        head: substring of the classifier's names.
        fixed: substrings of the other parameters that are trained anyway (no candidates).

    Raises:
        UserError: for a head of zeros, no batch, a gradient that is not finite, or sensitivities that are all zero.
    """
    candidates = find_candidates(model, head, fixed)
    layers = head_layers(model, head)
    if layers and all(not bool(layer.weight.any()) for layer in layers):
        raise UserError(
            f"the head ({head}) is all zeros, so every gradient behind it is zero; draw it anew with std 0.02"
        )
    if heads < 1 or max_batches < 1:
        raise UserError(f"heads {heads} and max_batches {max_batches} must be at least 1")
    owners = dict(model.named_parameters())
    held = {item.holder: owners[item.holder] for item in candidates}
    own_heads = [[p.detach().clone() for p in layer.parameters()] for layer in layers]
    statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]  # BatchNorms of a segmentation head move
    mode, device = model.training, next(model.parameters()).device
    images = used = 0
    with (
        torch.enable_grad(),
        _seeded(seed, device, deterministic),
        _frozen_but(model, held),
        squared_gradients(held) as sums,
    ):
        model.train(not (eval_mode or deterministic))
        try:
            for round_ in range(heads):
                if round_:
                    torch.manual_seed(seed + round_)
                    reset_head(model, head)
                for inputs, labels in islice(batches, max_batches):
                    inputs, labels = inputs.to(device), labels.to(device)
                    images, used = images + len(labels), used + 1
                    pieces = zip(inputs.split(1), labels.split(1), strict=True) if per_sample else [(inputs, labels)]
                    for x, y in pieces:
                        loss(model(x), y).backward()
        finally:
            model.train(mode)
            with torch.no_grad():
                for layer, kept in zip(layers, own_heads, strict=True):
                    for parameter, value in zip(layer.parameters(), kept, strict=True):
                        parameter.copy_(value)
                for buffer, before in statistics:
                    buffer.copy_(before)
    if not used:
        raise UserError("no batch to measure sensitivities on: the task's training list is empty")
    values = {item.name: item.view(sums[item.holder]) for item in candidates}
    check_values(values)
    options: dict[str, str | int | bool] = {
        "per_sample": per_sample,
        "eval_mode": eval_mode or deterministic,
        "seed": seed,
        "heads": heads,
    }
    identity = {**model_identity(model, head), "images": images, "batches": used, **options}
    return Sensitivities(values, identity)


def check_values(values: dict[str, Tensor]) -> None:
    """Refuses sensitivities that cannot rank anything.

    Raises:
        UserError: when one is not finite or negative, or all are zero.
    """
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
            raise UserError(f"the sensitivity of {name} holds values that are not finite or are negative")
    if not any(bool(value.any()) for value in values.values()):
        raise UserError("all sensitivities are zero: a head of zeros or a loss that does not depend on the weights")


@contextmanager
def _frozen_but(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """No gradient for any other parameter (embeddings, head): none is made, none stays behind."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    names = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


@contextmanager
def _seeded(seed: int, device: torch.device, deterministic: bool) -> Iterator[None]:
    """A random state of its own, and torch's deterministic algorithms when asked."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(deterministic or before)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def model_identity(model: nn.Module, head: str = "head") -> dict[str, str | int | bool]:
    """Fingerprints of the architecture (names and shapes) and of the weights of the backbone, head left out."""
    architecture, weights = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
    for name, value in model.state_dict().items():
        if head in name:
            continue
        architecture.update(f"{name}{tuple(value.shape)}".encode())
        weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {"model": type(model).__name__, "architecture": architecture.hexdigest(), "weights": weights.hexdigest()}


def save_sensitivities(path: str | Path, sensitivities: Sensitivities) -> None:
    """Writes a safetensors file; order and identity stand in its metadata."""
    order = json.dumps(list(sensitivities.values))
    save_weights(path, sensitivities.values, {"identity": json.dumps(sensitivities.identity), "order": order})


def load_sensitivities(path: str | Path) -> Sensitivities:
    """Reads what `save_sensitivities` wrote.

    Raises:
        UserError: for a file that is missing, damaged, or holds no sensitivities.
    """
    tensors = read_weights(path)
    metadata = read_metadata(path)
    if "identity" not in metadata or "order" not in metadata:
        raise UserError(f"{path} holds no sensitivities: its metadata has no identity")
    order = json.loads(metadata["order"])
    if set(order) != set(tensors):
        raise UserError(f"{path}: order and tensors do not agree")
    values = {name: tensors[name] for name in order}
    check_values(values)
    return Sensitivities(values, json.loads(metadata["identity"]))
