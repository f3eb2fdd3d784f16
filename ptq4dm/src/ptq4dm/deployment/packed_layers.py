"""Layers of real integers: `PackedLayer` holds the codes of a quantised convolution or linear layer and runs on them.

With inputs `x = d_a (q_a - z_a)` and weights `w = d_w (q_w - z_w)` the sum over a window is
`d_a d_w (sum q_a s - z' sum q_a - z_a sum s + K z_a z')`, where `s = q_w - o` are the signed bytes that the
products read and `z' = z_w - o`. The offset `o` is `z_w` where the codes then fit a signed byte, and `z'` is 0.

Shapes: B batch, O outputs, I inputs, K inputs of a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.errors import UserError
from ptq4dm.method.quant_layer import QuantLayer
from ptq4dm.method.quant_model import ActivationRange

LARGEST_SUM = 2**31 - 1
LARGEST_ZERO = 2**30
"""Zero points may lie outside the codes, but not where sums of 64 bits end."""


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes of 4 bits at most, (O, ...) uint8, two in a byte: (O, ceil(n / 2)), the even ones low."""
    rows = codes.flatten(1)
    rows = F.pad(rows, (0, rows.shape[1] % 2))
    return rows[:, ::2] | rows[:, 1::2] << 4


def unpack_nibbles(packed: Tensor, shape: torch.Size) -> Tensor:
    """The codes (O, ...) uint8 of `pack_nibbles`."""
    rows = torch.stack((packed & 15, packed >> 4), -1).flatten(1)
    return rows[:, : shape[1:].numel()].reshape(shape)


@dataclass(frozen=True)
class Integers:
    """What the products of a layer read.

    Attributes:
        signed: (O, I, ...) int8, `s`. start: (O,) int32, what a sum begins at. offset: (O,) int32, `z'`.
        scale: (O,) float32, `d_a d_w`.
    """

    signed: Tensor
    start: Tensor
    offset: Tensor
    scale: Tensor


class PackedLayer(nn.Module):
    """A convolution or linear layer with integer weights; inputs are quantised as they come.

    Its state is `weight_codes` (uint8; two a byte from 4 bits down), `weight_delta`, `weight_zero_point` (1 or O),
    `act_delta`, `act_zero_point` (R: one range per width of a mixed schedule) and `bias`.

    Args:
        kind: "conv" or "linear". shape: of the weight, (O, I, kh, kw) or (O, I).
        weight_bits: 2 to 8. act_bits: bits of the inputs in each of R ranges; `row` is the one in use.
        per_channel: whether each output has a weight range of its own. bias: whether there is one.
        stride, padding: of a convolution.
    """

    weight_codes: Tensor
    weight_delta: Tensor
    weight_zero_point: Tensor
    act_delta: Tensor
    act_zero_point: Tensor
    bias: Tensor | None

    def __init__(
        self,
        kind: str,
        shape: tuple[int, ...],
        weight_bits: int,
        act_bits: tuple[int, ...],
        per_channel: bool,
        bias: bool,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.kind, self.shape, self.weight_bits, self.act_bits = kind, torch.Size(shape), weight_bits, act_bits
        self.per_channel, self.stride, self.padding, self.row = per_channel, stride, padding, 0
        held = -(-self.shape[1:].numel() // 2) if weight_bits <= 4 else None
        codes = torch.zeros((shape[0], held) if held else shape, dtype=torch.uint8)
        self.register_buffer("weight_codes", codes)
        ranges = shape[0] if per_channel else 1
        for name, size in (("weight", ranges), ("act", len(act_bits))):
            self.register_buffer(f"{name}_delta", torch.ones(size))
            self.register_buffer(f"{name}_zero_point", torch.zeros(size))
        self.register_buffer("bias", torch.zeros(shape[0]) if bias else None)

    @property
    def description(self) -> dict[str, Any]:
        """Arguments that make a layer of this form."""
        return {"kind": self.kind, "shape": list(self.shape), "weight_bits": self.weight_bits,
                "act_bits": list(self.act_bits), "per_channel": self.per_channel, "bias": self.bias is not None,
                "stride": self.stride, "padding": self.padding}  # fmt: skip

    def check(self) -> None:
        """Refuses ranges and codes that packing gives to no layer; they come from files.

        Raises:
            ValueError: with the reason.
        """
        for name in ("weight", "act"):
            if not getattr(self, f"{name}_delta").all():
                raise ValueError(f"a {name}_delta of 0")
            zeros = getattr(self, f"{name}_zero_point")
            if (zeros != zeros.round()).any() or zeros.abs().max() > LARGEST_ZERO:
                raise ValueError(f"a {name}_zero_point that is no whole number up to {LARGEST_ZERO}")
        if (largest := int(self.codes.max())) >= 2**self.weight_bits:
            raise ValueError(f"a weight code {largest} of {self.weight_bits} bits")

    @classmethod
    @torch.no_grad()
    def of(cls, layer: QuantLayer, name: str, ranges: Sequence[ActivationRange] = ()) -> "PackedLayer":
        """The integers of a quantised layer whose ranges are known; `ranges` of the inputs, else the layer's own.

        Raises:
            UserError: ranges that are not known yet, a shortcut split, groups, dilation, or padding other than zeros.
        """
        if layer.split is not None:
            raise UserError(f"{name}: a shortcut split has two ranges of inputs; quantise without it to pack")
        quantizers = cast(Any, layer.weight_quantizer), layer.act_quantizer
        if not all(getattr(q, "initialised", True) for q in quantizers):
            raise UserError(f"{name}: its ranges are not known yet; calibrate it before packing")
        stride = padding = 0
        if layer.is_conv:
            sizes: Any = (layer.stride, layer.padding)
            plain = layer.groups == 1 and layer.padding_mode == "zeros" and set(cast(Any, layer.dilation)) == {1}
            if not plain or any(isinstance(s, str) or len(set(s)) > 1 for s in sizes):
                raise UserError(f"{name}: groups, dilation, uneven stride or padding are not packed")
            (stride, _), (padding, _) = sizes
        weight, (delta, zero) = layer.quantized_weight(), (quantizers[0].delta, quantizers[0].zero_point)
        codes = ((weight / delta).round() + zero).clamp(0, 2 ** layer.bits[0] - 1).to(torch.uint8)
        act = layer.act_quantizer
        inputs = ranges or [ActivationRange(act.bits, act.delta.detach(), act.zero_point)]
        bits = tuple(given.bits for given in inputs)
        packed = cls("conv" if layer.is_conv else "linear", tuple(weight.shape), layer.bits[0], bits, delta.numel() > 1,
                     layer.bias is not None, stride or 1, padding)  # fmt: skip
        packed.weight_codes = pack_nibbles(codes) if layer.bits[0] <= 4 else codes
        packed.weight_delta, packed.weight_zero_point = delta.reshape(-1).clone(), zero.reshape(-1).clone()
        packed.act_delta = torch.stack([given.delta.detach().reshape(()) for given in inputs])
        packed.act_zero_point = torch.stack([given.zero_point.reshape(()) for given in inputs])
        packed.bias = None if layer.bias is None else layer.bias.detach().clone()
        return packed.to(weight.device)

    @property
    def codes(self) -> Tensor:
        """(O, I, ...) uint8, one a byte."""
        return unpack_nibbles(self.weight_codes, self.shape) if self.weight_bits <= 4 else self.weight_codes

    @property
    def input_range(self) -> tuple[float, float, int]:
        """Step, zero point and highest code of the inputs, as now in use."""
        return float(self.act_delta[self.row]), float(self.act_zero_point[self.row]), 2 ** self.act_bits[self.row] - 1

    def dequantized_weight(self) -> Tensor:
        """(O, I, ...) float32: what the simulation multiplies by."""
        wide = (-1, *[1] * (len(self.shape) - 1))
        return (self.codes - self.weight_zero_point.view(wide)) * self.weight_delta.view(wide)

    def integers(self) -> Integers | None:
        """What the products read; None where a zero point does not allow them.

        A border is padded by the zero point's code, so the zero point must be a code where there is a border; and no
        sum may leave 32 bits.
        """
        delta, zero, top = self.input_range
        if self.padding and not 0 <= zero <= top:
            return None
        codes, wide = self.codes.int(), (-1, *[1] * (len(self.shape) - 1))
        zeros = self.weight_zero_point.long().expand(self.shape[0])
        rows = codes.flatten(1)
        offset = zeros.clone()
        fits = (rows.amin(1) - offset >= -128) & (rows.amax(1) - offset <= 127)
        offset = torch.where(fits, offset, 128 if self.weight_bits == 8 else 0)
        signed = codes - offset.view(wide)
        rest = zeros - offset
        depth = rows.shape[1]
        start = -int(zero) * signed.flatten(1).long().sum(1) + depth * int(zero) * rest
        largest = top * depth * (128 + int(rest.abs().max())) + int(start.abs().max())
        if largest > LARGEST_SUM:
            return None
        scale = (self.weight_delta * delta).expand(self.shape[0]).contiguous()
        return Integers(signed.to(torch.int8), start.int(), rest.int(), scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W'), or (..., I) -> (..., O), by `torch._int_mm` (CPU and CUDA).

        Raises:
            ValueError: another number of inputs than I.
        """
        if (inputs := x.shape[1 if self.kind == "conv" else -1]) != self.shape[1]:
            raise ValueError(f"{inputs} inputs of a layer that takes {self.shape[1]}")
        delta, zero, top = self.input_range
        codes = ((x.float() / delta).round() + zero).clamp(0, top)
        numbers = self.integers()
        if numbers is None:
            grid, weight = (codes - zero) * delta, self.dequantized_weight()
            if self.kind == "linear":
                return F.linear(grid, weight, self.bias).to(x.dtype)
            return F.conv2d(grid, weight, self.bias, self.stride, self.padding).to(x.dtype)
        if self.kind == "linear":
            rows = codes.flatten(0, -2)
            sums = integer_product(rows, numbers)
            out = sums.float() * numbers.scale
            out = (out if self.bias is None else out + self.bias).unflatten(0, codes.shape[:-1])
            return out.to(x.dtype)
        around = F.pad(codes, (self.padding,) * 4, value=zero)
        kernel = self.shape[2:]
        windows = F.unfold(around, kernel, stride=self.stride).transpose(1, 2)
        out = integer_product(windows.flatten(0, 1), numbers).float() * numbers.scale
        out = out if self.bias is None else out + self.bias
        height, width = ((size - k) // self.stride + 1 for size, k in zip(around.shape[2:], kernel, strict=True))
        return out.view(len(x), height, width, -1).permute(0, 3, 1, 2).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.kind} {tuple(self.shape)}, W{self.weight_bits}A{self.act_bits[self.row]}"


def integer_product(codes: Tensor, numbers: Integers) -> Tensor:
    """Exact sums (N, O) int32 of codes (N, K) with the layer's weights, by one signed 8-bit product.

    `torch._int_mm` wants signed bytes and sizes in steps of 8 with more than 16 rows; inputs are moved down by 128.
    """
    weight = numbers.signed.flatten(1)
    rows, depth = codes.shape
    moved = F.pad((codes - 128).to(torch.int8), (0, -depth % 8, 0, max(24 - rows, -rows % 8)))
    filled = F.pad(weight, (0, -depth % 8, 0, -len(weight) % 8))
    sums = torch._int_mm(moved, filled.T)[:rows, : len(weight)]
    sums = sums + 128 * weight.int().sum(1, dtype=torch.int32) + numbers.start
    return sums - codes.int().sum(1, keepdim=True, dtype=torch.int32) * numbers.offset
