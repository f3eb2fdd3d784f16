"""The uniform affine quantiser and its straight-through gradient (section 1 of the method; after BRECQ)."""

from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from ptq4dm.method.quantizer_native import fake_quantized
from ptq4dm.method.range_search import SMALLEST_STEP, Grid, Method, bounds, check_bits, grid_of_range, search_range


class _StraightThrough(torch.autograd.Function):
    """Exact rounding forward; backward `round` passes 1 and `clamp` passes 0 outside of the grid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, zero_point: Tensor, bottom: int, top: int) -> Tensor:
        ctx.save_for_backward(x, delta, zero_point)
        ctx.bounds = bottom, top
        return _rounded(x, delta, zero_point, bottom, top)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, zero_point = ctx.saved_tensors
        (gradient,) = gradients
        bottom, top = ctx.bounds
        scaled = x / delta
        code = scaled.round() + zero_point
        inside = (code >= bottom) & (code <= top)
        of_code = gradient * delta * inside
        of_delta = None
        if ctx.needs_input_grad[1]:
            # The two sums nearly cancel. Taken apart, as autograd takes them, they round as the authors' do, whose
            # noise Adam makes visible in a learned step.
            of_delta = (gradient * (code.clamp(bottom, top) - zero_point)).sum_to_size(delta.shape)
            of_delta = of_delta + (-of_code * (scaled / delta)).sum_to_size(delta.shape)
        return of_code / delta if ctx.needs_input_grad[0] else None, of_delta, None, None, None


def _rounded(x: Tensor, delta: Tensor, zero_point: Tensor, bottom: int, top: int) -> Tensor:
    compiled = fake_quantized(x, delta, zero_point, bottom, top)
    if compiled is not None:
        return compiled
    return ((x / delta).round() + zero_point).clamp(bottom, top).sub(zero_point).mul(delta)


def fake_quantize(x: Tensor, delta: Tensor, zero_point: Tensor, bits: int, grid: Grid = "unsigned") -> Tensor:
    """`(clamp(round(x / delta) + zero_point, bottom, top) - zero_point) * delta`, rounding half to even.

    The gradient of `x` is 1 inside the grid and 0 outside; that of `delta` is `q - zero_point - x / delta` inside and
    `bound - zero_point` outside, with no further scaling; `zero_point` has none.

    Args:
        x: any shape. delta, zero_point: shapes that broadcast with it.
        bits, grid: which integers, see `range_search.bounds`.
    """
    bottom, top = bounds(bits, grid)
    if torch.is_grad_enabled() and (x.requires_grad or delta.requires_grad):
        return _StraightThrough.apply(x, delta, zero_point, bottom, top)
    return _rounded(x, delta, zero_point, bottom, top)


class UniformAffineQuantizer(nn.Module):
    """Fake quantisation by a step `delta` and a `zero_point`, which the first tensor that it sees decides.

    Both are () or, per channel, (O, 1, ..., 1), and stay as they are after `initialise`. The step is a parameter with
    `learned_step`, otherwise a buffer; the zero point is a buffer of whole numbers, of any sign and size.

    Args:
        bits: 2 to 8.
        channel_wise, scale_method, symmetric, grid: of the range search.
        learned_step: the step is to be trained.
        momentum: of the average by which the range moves while `averaging` is on (Q-Diffusion has 0.95).

    Raises:
        UserError: bits outside 2 to 8; at the first tensor, what `search_range` raises.
    """

    delta: Tensor
    zero_point: Tensor

    def __init__(
        self,
        bits: int,
        channel_wise: bool = False,
        scale_method: Method = "mse",
        symmetric: bool = False,
        learned_step: bool = False,
        grid: Grid = "unsigned",
        momentum: float = 0.95,
    ) -> None:
        super().__init__()
        check_bits(bits)
        self.bits, self.channel_wise, self.scale_method = bits, channel_wise, scale_method
        self.symmetric, self.grid, self.momentum = symmetric, grid, momentum
        self.name = "a tensor"
        self.initialised = self.averaging = False
        self._range: tuple[Tensor, Tensor] | None = None
        if learned_step:
            self.delta = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("delta", torch.zeros(()))
        self.register_buffer("zero_point", torch.zeros(()))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, channel_wise={self.channel_wise}, grid={self.grid}, initialised={self.initialised}"

    @property
    def learned_step(self) -> bool:
        """Whether the step is a parameter."""
        return "delta" in self._parameters

    @torch.compiler.disable
    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Takes the range from `x`; errors begin with the quantiser's `name`."""
        try:
            found = search_range(x, self.bits, self.channel_wise, self.scale_method, self.symmetric, self.grid)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error
        self._range = None
        self.set_range(*found)

    @torch.no_grad()
    def set_range(self, delta: Tensor, zero_point: Tensor) -> None:
        """Takes a given step and zero point.

        Raises:
            UserError: their shapes differ, or a step is 0 or no number.
        """
        if delta.shape != zero_point.shape or not (delta.is_meta or (delta.isfinite() & (delta != 0)).all()):
            raise UserError(
                f"steps of shape {tuple(delta.shape)} and zero points of shape {tuple(zero_point.shape)}: "
                "they have one shape, and a step is a number other than 0"
            )
        delta = delta.detach().clone()
        self.delta = nn.Parameter(delta, requires_grad=self.delta.requires_grad) if self.learned_step else delta
        self.zero_point = zero_point.detach().clone()
        self.initialised = True

    @torch.compiler.disable
    @torch.no_grad()
    def update_range(self, x: Tensor) -> None:
        """Moves the range towards that of `x` by an average with `momentum` (Q-Diffusion; per tensor)."""
        low, high = x.aminmax()
        if self._range is not None:
            old_low, old_high = self._range
            low = self.momentum * old_low + (1 - self.momentum) * low
            high = self.momentum * old_high + (1 - self.momentum) * high
        self._range = low, high
        delta, _ = grid_of_range(low, high, self.bits, self.grid)
        delta = delta.clamp(min=SMALLEST_STEP)
        self.set_range(delta, (-low / delta).round() if self.grid == "unsigned" else torch.zeros_like(delta))

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The whole numbers that stand for `x`, in a float tensor of its shape: 0 to 2^bits - 1, or the signed grid."""
        return ((x / self.delta).round() + self.zero_point).clamp(*bounds(self.bits, self.grid))

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantised `x`, same shape and type."""
        if self.averaging:
            self.update_range(x)
        elif not self.initialised:
            self.initialise(x)
        return fake_quantize(x, self.delta, self.zero_point, self.bits, self.grid)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes the shapes of the file: they are known only after the first tensor. A step of 0 is none yet."""
        delta, zero_point = (state_dict.get(prefix + name) for name in ("delta", "zero_point"))
        if isinstance(delta, Tensor) and isinstance(zero_point, Tensor) and delta.shape == zero_point.shape:
            like = self.delta
            if delta.shape != like.shape:
                empty = torch.empty(delta.shape, dtype=like.dtype, device=like.device)
                self.delta = nn.Parameter(empty, requires_grad=like.requires_grad) if self.learned_step else empty
                self.zero_point = torch.empty_like(empty)
            self.initialised = bool((delta != 0).all())
        super()._load_from_state_dict(state_dict, prefix, *args)
