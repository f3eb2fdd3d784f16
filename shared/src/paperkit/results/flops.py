"""Multiply-adds and parameters, counted on the meta device: no memory, no arithmetic, and attention is seen.

On a CPU, torch's flop counter and fvcore both miss fused attention (DeiT-Ti: 1.07 instead of 1.25 G); on the meta
device scaled_dot_product_attention falls apart into matrix products. One multiply-add counts 1, not 2.

Published tables made with fvcore also hold terms for normalisation; `norms=True` adds them as fvcore 0.1.5 does:
5 x elements per LayerNorm and GroupNorm (4 without weight), 2 x elements per BatchNorm in eval mode (1 without
weight), 1 x input elements per 2-D adaptive average pooling. A mean over tokens counts 0.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]
aten = torch.ops.aten


@dataclass(frozen=True)
class Counts:
    """Multiply-adds of one forward pass, and parameters (each counted once)."""

    macs: int
    params: int


# Formulas for FlopCounterMode, which counts 2 per multiply-add and gives shapes for tensors (None stays None).
def _layer_norm(x: Shape, normalized_shape: Shape, weight: Shape | None, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x) * (4 if weight is None else 5)


def _batch_norm(x: Shape, weight: Shape | None, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x) * (1 if weight is None else 2)


def _matrix_vector(matrix: Shape, vector: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


# Products that torch's own table leaves out.
_PRODUCTS = {aten.mv: _matrix_vector, aten.dot: _matrix_vector}
_NORMS = {
    aten.native_layer_norm: _layer_norm,
    aten.native_group_norm: lambda x, weight, *args, **kwargs: _layer_norm(x, (), weight),
    aten.native_batch_norm: _batch_norm,
    aten.cudnn_batch_norm: _batch_norm,
    aten._native_batch_norm_legit: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten._batch_norm_no_update: _batch_norm,
}


class _AdaptivePooling(TorchFunctionMode):
    """Adds up the input elements of adaptive pooling; with output size 1 it is a mean by the time it is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.adaptive_avg_pool2d:
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


class MacCounter:
    """Counts the multiply-adds of everything called inside `with MacCounter() as counter`; read `counter.macs`.

    Tensors and modules used inside must be on the meta device, or fused attention goes uncounted.
    """

    def __init__(self, norms: bool = False) -> None:
        self._flops = FlopCounterMode(display=False, custom_mapping={**_PRODUCTS, **(_NORMS if norms else {})})
        self._pooling = _AdaptivePooling() if norms else None

    def __enter__(self) -> "MacCounter":
        self._flops.__enter__()
        if self._pooling:
            self._pooling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._pooling:
            self._pooling.__exit__(*error)
        self._flops.__exit__(*error)

    @property
    def macs(self) -> int:
        """Multiply-adds so far."""
        return self._flops.get_total_flops() // 2 + (self._pooling.elements if self._pooling else 0)


def count(
    model: nn.Module | Callable[[], nn.Module], *inputs: Any, norms: bool = False, method: str | None = None
) -> Counts:
    """Multiply-adds and parameters of a model in eval mode; the model itself is left as it is.

    Args:
        model: a module on any device, or a function that builds one (it is called on the meta device).
        inputs: shapes such as `(1, 3, 224, 224)`, tensors, or anything else the model takes.
        norms: add fvcore's terms for normalisation and pooling.
        method: name of the method to call instead of `forward`.

    Example:
        >>> count(lambda: timm.create_model("deit_tiny_patch16_224"), (1, 3, 224, 224), norms=True)
        Counts(macs=1258411200, params=5717416)
    """
    if not isinstance(model, nn.Module):
        with torch.device("meta"):
            model = model()
    model = on_meta(model).eval()
    macs = count_call(getattr(model, method) if method else model, *inputs, norms=norms)
    return Counts(macs, sum(p.numel() for p in model.parameters()))


def count_call(fn: Callable[..., Any], *inputs: Any, norms: bool = False) -> int:
    """Multiply-adds of `fn(*inputs)`, for a piece of a model already on the meta device (see `on_meta`)."""
    with torch.no_grad(), torch.device("meta"), MacCounter(norms) as counter:
        fn(*(_meta_input(value) for value in inputs))
    return counter.macs


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device, without copying its numbers."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(model, memo)


def _meta_input(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, (tuple, list)) and value and all(isinstance(n, int) for n in value):
        return torch.empty(tuple(value), device="meta")
    return value
