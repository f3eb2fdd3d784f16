"""A linear layer whose weights are one bit in memory, and whose products are popcounts where the C++ kernels run.

Where they do not (other devices and dtypes, gradients, tracing), plain PyTorch computes the same.

Shapes: B batch, N tokens, C channels, I inputs, O outputs, W = ceil(I / 64) words.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bivit.deployment import kernels
from bivit.deployment.kernels import Kernels, Struct
from bivit.method.binary_linear import BinaryLinear
from bivit.method.packing import pack_bits, row_bytes, unpack_bits, unpack_signs
from bivit.method.sign import Zero, plain_sign
from paperkit.errors import UserError

ZeroRule = Literal["plus", "ternary", "exact"]
"""sign(0) of a layer's inputs: +1; 0, always with a second plane; 0, with a second plane in the rows that need it."""


class PackedLinear(nn.Module):
    """A binary linear with packed weights: y = dot(signs of x, signs of W) * scale + bias.

    Args:
        in_features, out_features: I and O. float_inputs: x is not signed (W1A32); the weights are then unpacked for
            each call, which saves memory and no time. zero: sign(0) of the inputs.

    Buffers: `weight_bits` (O, 8 W) uint8, little-endian, 1 where the centred weight is above 0; `scale`, `bias` (O,).
    A row of constant weights, whose signs are 0, has scale 0. `zero_weights` (E, 2) int32, row and column, are the
    other weights whose sign is 0, where there are any; the blocks around such a layer do not run as one call.
    """

    weight_bits: Tensor
    scale: Tensor
    bias: Tensor
    zero_weights: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        zero: ZeroRule = "exact",
        float_inputs: bool = False,
        zero_weights: int = 0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.zero, self.float_inputs = zero, float_inputs
        self.register_buffer("weight_bits", torch.zeros(out_features, row_bytes(in_features), dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(out_features))
        self.register_buffer("bias", torch.zeros(out_features))
        self.register_buffer("zero_weights", torch.zeros(zero_weights, 2, dtype=torch.int32) if zero_weights else None)

    @classmethod
    def of(cls, layer: BinaryLinear, name: str = "a layer", ternary_inputs: bool = False) -> "PackedLinear":
        """The packed form of a layer, which is not changed.

        Args:
            name: for the message. ternary_inputs: exact zeros are the rule among its inputs (sums of an attention).

        Raises:
            UserError: what one bit cannot hold: another rule than signs, signs of 0 in more than a hundredth of the
                weights (constant rows apart), numbers that are not finite.
        """
        rule = layer.rule
        if rule.weights != "sign" or rule.inputs not in ("sign", "float"):
            what = f"inputs '{rule.inputs}'" if rule.weights == "sign" else "float weights"
            raise UserError(f"{name} cannot be packed: it has {what}, and only signs of weights and inputs are one bit")
        with torch.no_grad():
            if not layer.scale_checked:
                layer._check_scale()
            centred, scale = layer.centred_weight().float(), layer.scale().float().flatten().clone()
            bias = layer.bias.detach().float()  # `float` of a float32 parameter is the parameter
        if not all(bool(part.isfinite().all()) for part in (centred, scale, bias)):
            raise UserError(f"{name} cannot be packed: it holds weights that are not finite")
        constant = (centred == 0).all(1)
        zeros = ((centred == 0) & ~constant[:, None]).nonzero()
        if 100 * len(zeros) > centred.numel():
            raise UserError(f"{name} cannot be packed: {len(zeros)} of {centred.numel()} centred weights are exactly 0")
        scale[constant] = 0
        zero: ZeroRule = "plus" if layer.zero == "plus" else "ternary" if ternary_inputs else "exact"
        packed = cls(layer.in_features, layer.out_features, zero, rule.inputs == "float", len(zeros))
        packed = packed.to(centred.device).eval()
        packed.weight_bits.copy_(pack_bits(centred > 0))
        packed.scale.copy_(scale)
        packed.bias.copy_(bias)
        if packed.zero_weights is not None:
            packed.zero_weights.copy_(zeros)
        return packed

    @property
    def sign_zero(self) -> Zero:
        """The zero rule in `method.sign`'s words."""
        return "plus" if self.zero == "plus" else "ternary"

    def signs(self) -> Tensor:
        """(O, I): -1 and +1 in float32, and the few zeros."""
        signs = unpack_signs(self.weight_bits, self.in_features)
        if self.zero_weights is not None:
            signs[tuple(self.zero_weights.T.long())] = 0
        return signs

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) in the dtype of x. A row with a NaN becomes NaN."""
        native = serving(x) if self.in_features <= kernels.MOST_INPUTS else None
        if native is None:
            if self.float_inputs:
                return F.linear(x, (self.signs() * self.scale[:, None]).to(x.dtype), self.bias.to(x.dtype))
            if x.is_cuda and (kernel := triton_linear()) is not None and kernel.fits(x, self.out_features):
                scale, bias = self.scale.float(), self.bias.float()
                out = kernel.packed_linear(x, self.weight_bits, scale, bias, self.zero == "plus")
                return self._without_zero_weights(out, x).to(x.dtype)
            dot = F.linear(plain_sign(x, self.sign_zero).float(), self.signs())
            return (dot * self.scale.float() + self.bias.float()).to(x.dtype)
        threads = torch.get_num_threads()
        if self.float_inputs:
            weight = torch.empty(self.out_features, self.in_features)
            pointers = [part.data_ptr() for part in (self.weight_bits, self.scale, weight)]
            native.unpack(*pointers, self.out_features, self.in_features, native.number, threads)
            if self.zero_weights is not None:
                weight[tuple(self.zero_weights.T.long())] = 0
            return F.linear(x, weight, self.bias)
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], self.out_features)
        struct = cached(self, native, lambda: linear_struct(self, native.tier))
        rows = out.numel() // self.out_features
        native.linear(struct.data, x.data_ptr(), out.data_ptr(), rows, native.number, threads)
        return self._without_zero_weights(out, x)

    def _without_zero_weights(self, out: Tensor, x: Tensor) -> Tensor:
        if self.zero_weights is not None:  # the kernels counted them as -1
            row, column = self.zero_weights.T.long()
            out.index_add_(-1, row, plain_sign(x[..., column], self.sign_zero).to(out.dtype) * self.scale[row])
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        forget()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        bits = "W1A32" if self.float_inputs else "W1A1"
        return f"{self.in_features}, {self.out_features}, {bits}, zero={self.zero}"


@functools.cache
def triton_linear() -> Any:
    """The module with the Triton kernels; None where Triton is not installed."""
    with contextlib.suppress(ImportError):
        from bivit.deployment import kernels_triton

        return kernels_triton
    return None


# --- the compiled form of a module -----------------------------------------------------------------------------------

_structs: "weakref.WeakKeyDictionary[nn.Module, dict[Any, Any]]" = weakref.WeakKeyDictionary()
MOST_STRUCTS = 8
"""Tiers and sizes of input for which a module stays laid out."""


def forget() -> None:
    """Weights changed: what was laid out for the kernels is made anew."""
    _structs.clear()


def cached(module: nn.Module, native: Kernels, make: Callable[[], Struct], key: Any = None) -> Struct:
    """What `make` lays out for a module at a tier, until weights change."""
    known = _structs.setdefault(module, {})
    struct = known.get((native.tier, key))
    if struct is None:
        if len(known) == MOST_STRUCTS:
            known.clear()
        struct = known[native.tier, key] = make()
    return struct


def serving(x: Tensor) -> Kernels | None:
    """The kernels, if they serve this input; None where plain PyTorch is to run."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:
        return None
    if not x.is_cpu or x.dtype != torch.float32 or x.layout != torch.strided or x.numel() == 0:
        return None
    return None if x.requires_grad and torch.is_grad_enabled() else kernels.kernels()


def linear_struct(
    layer: PackedLinear,
    tier: str,
    outputs: tuple[str, bool] | None = None,
    gain: Tensor | None = None,
    columns: Tensor | None = None,
) -> Struct:
    """A layer for the kernels.

    Args:
        outputs: zero rule of who takes the outputs' signs, and whether GELU lies between.
        gain: factor per output channel (LayerScale). columns: order of the inputs.
    """
    scale, bias, bits = layer.scale, layer.bias, layer.weight_bits
    if gain is not None:
        scale, bias = scale * gain, bias * gain
    if columns is not None:
        bits = pack_bits(unpack_bits(bits, layer.in_features)[:, columns])
    signs = kernels.signs_by_threshold(scale, bias, layer.in_features, *outputs) if outputs else None
    return kernels.linear_struct(bits, scale, bias, layer.in_features, layer.zero, tier, signs)
