"""A network as a list of the kernels' steps, built for one size of input and run by one call.

Activations are float32 and NHWC between steps. A layer is two steps: `prepare` (concatenate, normalise, activate,
enlarge, quantise, pad: one pass over the input) and `product` (integers or floats, then scale, bias, time embedding,
residual). Buffers share one block of memory as far as their lives allow.

Letters: B batch, H W rows and columns, C channels.
"""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ptq4dm.deployment.kernels import Kernels, ordered, per_output
from ptq4dm.deployment.packed_layers import PackedLayer

MOMENTS, PREPARE, PRODUCT, ATTENTION_ORDER, ATTENTION = range(5)
FORMS = {
    MOMENTS: struct.Struct("7q"),
    PREPARE: struct.Struct("23q4d"),
    PRODUCT: struct.Struct("24qd"),
    ATTENTION_ORDER: struct.Struct("16qd"),
    ATTENTION: struct.Struct("16qd"),
}
ALIGNMENT = 64
MOST_CHANNELS = 8192
WORTH_THREADS = 200_000
"""Products of a step, on average, from which several threads share it."""
MOST_ROWS = 8  # of a tile in the kernels
SILU, GEGLU = 1, 2


class UnsupportedError(Exception):
    """A module that has no steps here: the network then runs module by module."""


class SizeError(UnsupportedError):
    """Inputs whose sizes do not fit together here: this call runs module by module, where PyTorch judges them."""


def _fit(agree: bool, what: str) -> None:
    """Nothing in the kernels looks at sizes again, so all of them must agree before a step is written down."""
    if not agree:
        raise SizeError(what)


@dataclass(eq=False)
class Buffer:
    """Bytes in the program's memory; `kept` ones are never given to another."""

    size: int
    kept: bool = False
    first: int = -1
    last: int = -1
    offset: int = -1


@dataclass(frozen=True, eq=False)
class Field:
    """Float32 activations (B, H, W, C)."""

    buffer: Buffer
    batch: int
    height: int
    width: int
    channels: int

    @property
    def sides(self) -> tuple[int, int, int]:
        """B, H, W."""
        return self.batch, self.height, self.width


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation before a layer: `kind` 1 over groups of channels, 2 over the channels of a pixel."""

    kind: int
    channels: int
    groups: int
    gamma: Tensor | None
    beta: Tensor | None
    epsilon: float
    modulation: Field | None = None

    @classmethod
    def of(cls, module: nn.Module, modulation: Field | None = None) -> "Norm":
        """Of a group norm or layer norm.

        Raises:
            UnsupportedError: another one.
        """
        if type(module) is nn.GroupNorm:
            gamma, beta = _floats(module.weight), _floats(module.bias)
            return cls(1, module.num_channels, module.num_groups, gamma, beta, module.eps, modulation)
        if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
            (channels,) = module.normalized_shape
            return cls(2, channels, 1, _floats(module.weight), _floats(module.bias), module.eps)
        raise UnsupportedError(f"normalisation {type(module).__name__}")


@dataclass(frozen=True)
class _Ready:
    """A layer in the tier's order."""

    weights: Tensor
    inputs: int
    words: int
    bias: Tensor
    kernel: tuple[int, int]
    stride: int
    padding: int
    outputs: int
    kind: int
    start: Tensor | None = None
    offset: Tensor | None = None
    scale: Tensor | None = None
    input_range: tuple[float, float, int] = (1.0, 0.0, 255)


@dataclass
class Program:
    """Steps under construction; `finish` places buffers, `run` executes."""

    kernels: Kernels
    steps: list[tuple[int, list[Any]]] = field(default_factory=list)
    alive: list[Any] = field(default_factory=list)
    made: dict[Any, Any] = field(default_factory=dict)
    products: int = 0

    # --- buffers ---

    def values(self, batch: int, height: int, width: int, channels: int, kept: bool = False) -> Field:
        """New float32 activations."""
        return Field(Buffer(4 * batch * height * width * channels, kept), batch, height, width, channels)

    def finish(self) -> None:
        """Places buffers by first fit and writes the steps down."""
        buffers: list[Buffer] = []
        for index, (_, fields) in enumerate(self.steps):
            for buffer in (f for f in fields if isinstance(f, Buffer)):
                if buffer.first < 0:
                    buffer.first = index
                    buffers.append(buffer)
                buffer.last = index
        total, placed = 0, cast(list[Buffer], [])
        for buffer in buffers:
            if buffer.kept:
                buffer.first, buffer.last = -1, len(self.steps)
        for buffer in sorted(buffers, key=lambda b: b.first):
            size, offset = -(-buffer.size // ALIGNMENT) * ALIGNMENT + ALIGNMENT, 0
            rivals = [b for b in placed if b.last >= buffer.first and b.first <= buffer.last]
            for other in sorted(rivals, key=lambda b: b.offset):
                if offset + size <= other.offset:
                    break
                offset = max(offset, other.offset + -(-other.size // ALIGNMENT) * ALIGNMENT + ALIGNMENT)
            buffer.offset = offset
            placed.append(buffer)
            total = max(total, offset + size)
        self.memory = torch.zeros(total + ALIGNMENT, dtype=torch.uint8)
        base = -(-self.memory.data_ptr() // ALIGNMENT) * ALIGNMENT
        self.origin = base - self.memory.data_ptr()
        array = []
        for kind, fields in self.steps:
            numbers = [self._address(f, base) for f in fields]
            content = ctypes.create_string_buffer(FORMS[kind].pack(*numbers))
            self.alive.append(content)
            array += [kind, ctypes.addressof(content)]
        self.array = (ctypes.c_int64 * len(array))(*array)

    def _address(self, value: Any, base: int) -> Any:
        if value is None:
            return 0
        if isinstance(value, Buffer):
            return base + value.offset
        if isinstance(value, Tensor):
            assert value.is_contiguous() and value.element_size() == 4 and value.device.type == "cpu"
            self.alive.append(value)
            return value.data_ptr()
        return value

    def view(self, values: Field) -> Tensor:
        """Activations as a tensor (B, H, W, C) over the program's memory, after `finish`."""
        start = self.origin + values.buffer.offset
        flat = self.memory[start : start + values.buffer.size].view(torch.float32)
        return flat.view(values.batch, values.height, values.width, values.channels)

    def run(self) -> None:
        """Executes all steps; a network of small ones on one thread, where waiting would cost more than it saves."""
        threads = torch.get_num_threads() if self.products >= WORTH_THREADS * len(self.steps) else 1
        self.kernels.run(ctypes.addressof(self.array), len(self.steps), threads)

    # --- steps ---

    def _moments(self, sources: Sequence[Field]) -> Buffer:
        key = ("moments", tuple(s.buffer for s in sources))
        if key not in self.made:
            first, second = sources[0], sources[1] if len(sources) > 1 else None
            channels = sum(s.channels for s in sources)
            sums = Buffer(16 * first.batch * channels)
            fields = [first.buffer, second and second.buffer, first.channels, second.channels if second else 0,
                      first.batch, first.height * first.width, sums]  # fmt: skip
            self.steps.append((MOMENTS, fields))
            self.made[key] = sums
        return cast(Buffer, self.made[key])

    def layer(
        self,
        module: nn.Module,
        *sources: Field,
        norm: Norm | None = None,
        activation: int = 0,
        enlarge: int = 1,
        padding: tuple[int, int, int, int] | None = None,
        shift: Field | None = None,
        residual: Field | None = None,
        output_scale: float = 1.0,
        kept: bool = False,
    ) -> Field:
        """A layer with everything around it.

        Args:
            module: PackedLayer, Conv2d or Linear. sources: concatenated along channels.
            norm, activation, enlarge: before it. padding: top, left, bottom, right; else the layer's own.
            shift: (B, 1, 1, O), added to every pixel. residual: added, and the sum multiplied by `output_scale`.

        Raises:
            UnsupportedError: a layer that the kernels do not have.
            SizeError: sizes that do not fit together.
        """
        ready = self._ready(module)
        first, second = sources[0], sources[1] if len(sources) > 1 else None
        inputs = ready.inputs
        _check_inputs(inputs, sources, norm, activation)
        around = padding or (ready.padding,) * 4
        if padding is not None and ready.kind != 0 and not 0 <= ready.input_range[1] <= ready.input_range[2]:
            raise UnsupportedError("a border before the quantiser, whose zero is off its grid")
        height, width = first.height * enlarge, first.width * enlarge
        rows, columns = height + around[0] + around[2], width + around[1] + around[3]
        stride = ready.words * (4 if ready.kind == 1 else 1)
        kernel, step = ready.kernel, ready.stride
        _fit(rows >= kernel[0] and columns >= kernel[1], f"{rows} x {columns} pixels under a kernel of {kernel}")
        out = self.values(first.batch, (rows - kernel[0]) // step + 1, (columns - kernel[1]) // step + 1, ready.outputs,
                          kept)  # fmt: skip
        for added, sides in ((shift, (out.batch, 1, 1)), (residual, out.sides)):
            _fit(added is None or (added.sides, added.channels) == (sides, out.channels), "what is added to a layer")
        totals: Buffer | None = None
        plain = ready.kind == 0 and not any(around) and second is None and norm is None and activation == 0
        if plain and enlarge == 1:
            prepared = first.buffer
        else:
            key = ("prepared", tuple(s.buffer for s in sources), norm, activation, enlarge, around, ready.kind, stride,
                   ready.offset is not None, ready.input_range)  # fmt: skip
            if key not in self.made:
                prepared = Buffer(first.batch * rows * columns * stride * (1 if ready.kind == 1 else 4))
                totals = Buffer(4 * first.batch * rows * columns) if ready.offset is not None else None
                delta, zero, top = ready.input_range
                sums = self._moments(sources) if norm and norm.kind == 1 else None
                self.steps.append((PREPARE, [
                    first.buffer, second and second.buffer, first.channels, second.channels if second else 0,
                    first.batch, height, width, enlarge, *around, prepared, stride, ready.kind,
                    norm.kind if norm else 0, norm.groups if norm else 1, sums, norm.gamma if norm else None,
                    norm.beta if norm else None, activation,
                    norm.modulation.buffer if norm and norm.modulation else None, totals, delta, zero, float(top),
                    norm.epsilon if norm else 0.0,
                ]))  # fmt: skip
                self.made[key] = prepared, totals
            prepared, totals = self.made[key]
        self.products += out.batch * out.height * out.width * ready.outputs * kernel[0] * kernel[1] * inputs
        self.steps.append((PRODUCT, [
            prepared, ready.weights, ready.start, ready.offset, totals, ready.scale, ready.bias,
            shift and shift.buffer, residual and residual.buffer, out.buffer, out.batch, out.height, out.width, rows,
            columns, ready.words, *kernel, step, ready.outputs, int(ready.kind != 1), ready.outputs,
            shift.channels if shift else 0, residual.channels if residual else 0, output_scale,
        ]))  # fmt: skip
        return out

    def attention(self, q: Field, k: Field, v: Field, heads: int, scale: float) -> Field:
        """Softmax attention over the pixels of each image, (B, H, W, C) as q."""
        queries, tokens, width = q.height * q.width, k.height * k.width, q.channels // heads
        _fit(
            q.channels == heads * width and q.batch == k.batch and tokens > 0, f"{heads} heads of {q.channels} channels"
        )
        _fit((k.sides, k.channels, v.channels) == (v.sides, q.channels, q.channels), "keys and values of other sizes")
        lanes, threads = self.kernels.lanes, max(torch.get_num_threads(), 1)
        wide, across = (-(-n // lanes) * lanes for n in (tokens, width))
        out = self.values(q.batch, q.height, q.width, q.channels)
        keys, values = (Buffer(4 * q.batch * heads * n) for n in (wide * width, across * tokens))
        scores = Buffer(4 * MOST_ROWS * threads * wide)
        fields = [q.buffer, k.buffer, v.buffer, out.buffer, keys, values, scores, q.batch, heads, queries, tokens,
                  width, q.channels, k.channels, v.channels, q.channels, scale]  # fmt: skip
        self.steps += [(ATTENTION_ORDER, fields), (ATTENTION, fields)]
        return out

    def _ready(self, module: nn.Module) -> _Ready:
        key = ("ready", module)
        if key not in self.made:
            self.made[key] = _ready_of(module, self.kernels.lanes)
        return cast(_Ready, self.made[key])


def _check_inputs(inputs: int, sources: Sequence[Field], norm: Norm | None, activation: int) -> None:
    """That a layer of so many inputs, and what stands before it, fit what they get."""
    first, channels = sources[0], sum(s.channels for s in sources)
    if channels > MOST_CHANNELS:
        raise UnsupportedError(f"{channels} channels")
    _fit(channels == (2 * inputs if activation == GEGLU else inputs), f"{channels} channels for {inputs} inputs")
    _fit(all(s.sides == first.sides for s in sources), f"{[s.sides for s in sources]} beside each other")
    if len(sources) > 1 and (activation == GEGLU or (norm is not None and norm.kind == 2)):
        raise UnsupportedError("a layer norm or a gate over two inputs")
    if norm is not None:
        _fit(norm.channels == channels, f"a norm of {norm.channels} channels over {channels}")
        if (changed := norm.modulation) is not None:
            expected = ((first.batch, 1, 1), 2 * channels)
            _fit((changed.sides, changed.channels) == expected, "scale and shift of a norm")


def _ready_of(module: nn.Module, lanes: int) -> _Ready:
    if isinstance(module, PackedLayer):
        numbers = module.integers()
        shape, bias, stride, padding = module.shape, module.bias, module.stride, module.padding
        if numbers is not None:
            signed = _last(numbers.signed)
            signed = nn.functional.pad(signed, (0, -signed.shape[-1] % 4)).contiguous()
            words = signed.shape[-1] // 4
            flat = signed.flatten(1).view(torch.int32)
            some = bool(numbers.offset.any())
            return _Ready(
                ordered(flat, lanes), shape[1], words, _bias(bias, shape[0], lanes), _kernel(shape), stride, padding,
                shape[0], 1,
                per_output(numbers.start, lanes), per_output(numbers.offset, lanes) if some else None,
                per_output(numbers.scale.float(), lanes), module.input_range,
            )  # fmt: skip
        weight, kind, reach = module.dequantized_weight(), 2, module.input_range
    elif type(module) is nn.Linear:
        weight, bias, stride, padding, kind, reach = module.weight.detach(), module.bias, 1, 0, 0, (1.0, 0.0, 255)
    elif type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1):
        if module.padding_mode != "zeros" or len({*module.stride}) > 1 or len({*module.padding}) > 1:
            raise UnsupportedError(f"convolution {module}")
        weight, bias = module.weight.detach(), module.bias
        stride, padding, kind, reach = module.stride[0], int(module.padding[0]), 0, (1.0, 0.0, 255)
    else:
        raise UnsupportedError(f"layer {type(module).__name__}")
    shape, last = weight.shape, _last(weight.float())
    outputs, inputs = shape[:2]
    return _Ready(ordered(last.flatten(1), lanes), inputs, last.shape[-1], _bias(bias, outputs, lanes), _kernel(shape),
                  stride, padding, outputs, kind, input_range=reach)  # fmt: skip


def _floats(values: Tensor | None) -> Tensor | None:
    """Parameters as the kernels read them. Detached, they stay in memory whatever becomes of the module."""
    return None if values is None else values.detach().float().contiguous()


def _kernel(shape: torch.Size) -> tuple[int, int]:
    return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)


def _last(weight: Tensor) -> Tensor:
    """(O, I, kh, kw) -> (O, kh, kw, I)."""
    return (weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight[:, None, None]).contiguous()


def _bias(bias: Tensor | None, outputs: int, lanes: int) -> Tensor:
    return per_output(torch.zeros(outputs) if bias is None else bias.detach().float(), lanes)
