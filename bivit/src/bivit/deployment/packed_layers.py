"""Layers whose weights are one bit in memory, and whose products are popcounts where the C++ kernels run.

`PackedLinear` stands for a `BinaryLinear`; attention, MLPs and timm's blocks keep their classes' forward passes over
such linears (plain PyTorch, any device), and give the whole of it to one call of the kernels where these serve: float32
on a CPU, no gradients. Between the layers of such a call there are only bits: LayerNorm and sign in one pass; q, k and
v by thresholds on integers; sums of the attention as signs; fc1 by a threshold that takes GELU's place.

Shapes: B batch, N tokens, C channels, H heads, I inputs, O outputs, W = ceil(I / 64) words.
"""

import contextlib
import functools
import math
import weakref
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from timm.models.nest import TransformerLayer
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from bivit.deployment import kernels
from bivit.deployment.kernels import Kernels, Struct
from bivit.method.attention import BinaryAttention, BlockAttention, WindowAttention
from bivit.method.attention_rules import BoolScores, NaiveScores
from bivit.method.binary_linear import BinaryLinear
from bivit.method.mlp import BinaryMlp
from bivit.method.packing import active_keys, dot_margin, pack_bits, row_bytes, unpack_bits, unpack_signs
from bivit.method.sign import Sign, Zero, plain_sign
from bivit.method.softmax_aware import BETA, SoftmaxAware
from paperkit.errors import UserError

ZeroRule = Literal["plus", "ternary", "exact"]
"""sign(0) of a layer's inputs: +1; 0, always with a second plane; 0, with a second plane in the rows that need it."""
M = TypeVar("M", bound=nn.Module)


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


def norm_struct(norm: nn.Module | None) -> Struct:
    """A LayerNorm for the kernels; none: signs of the tokens themselves."""
    if norm is None:
        return Struct(kernels.NORM.pack(0, 0, 0, 0.0), [])
    assert isinstance(norm, nn.LayerNorm)
    if norm.weight is None:
        return Struct(kernels.NORM.pack(1, 0, 0, norm.eps), [])
    weight = norm.weight.detach()
    bias = norm.bias.detach() if norm.bias is not None else torch.zeros_like(weight)
    return Struct(kernels.NORM.pack(1, weight.data_ptr(), bias.data_ptr(), norm.eps), [weight, bias])


def served_norm(norm: nn.Module | None, channels: int) -> bool:
    """Whether a norm is one that the kernels compute."""
    if norm is None:
        return True
    plain = isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (channels,)
    return plain and (norm.weight is None or norm.weight.dtype == torch.float32)


def gain_of(layer: nn.Module | None) -> Tensor | None:
    """A LayerScale's factors."""
    gamma = getattr(layer, "gamma", None)
    return None if gamma is None else gamma.detach()


# --- attention and MLP -----------------------------------------------------------------------------------------------


def one_bit(layer: nn.Module) -> bool:
    """Whether a layer multiplies bits by bits in a way the kernels know."""
    if not isinstance(layer, PackedLinear) or layer.zero_weights is not None:
        return False
    return not layer.float_inputs and layer.in_features <= kernels.MOST_INPUTS


def served_attention(attn: nn.Module) -> bool:
    """Whether the kernels compute this attention: signs of q, k and v, and scores by a threshold."""
    if not isinstance(attn, BinaryAttention) or not hasattr(attn, "qkv"):
        return False
    signs = all(type(layer) is Sign for layer in (attn.binarize_q, attn.binarize_k, attn.binarize_v))
    scores = isinstance(attn.scores, (SoftmaxAware, BoolScores, NaiveScores))
    return signs and scores and one_bit(attn.qkv) and one_bit(attn.proj)


def underflows(attn: Any, mask: object) -> bool:
    """Whether scores depend on what a softmax rounds to 0, which only the softmax itself can say."""
    return mask is not None and isinstance(attn.scores, NaiveScores)


def served_mlp(mlp: nn.Module) -> bool:
    """Whether the kernels compute this MLP: one bit all through, and the exact GELU."""
    if not isinstance(mlp, BinaryMlp) or not one_bit(mlp.fc1) or not one_bit(mlp.fc2):
        return False
    return isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"


def attention_bytes(
    attn: Any, windows: int, tokens: int, places: Tensor | None, bias: Tensor | None, mask: Tensor | None
) -> Struct:
    """The attention of a window for the kernels. bias (H, N, N), mask (windows, N, N), places (windows, N) int32."""
    width, scores = attn.head_dim, attn.scores
    relative, threshold, log_beta = 0, width - 1, 0.0  # bool: dot > 0
    if isinstance(scores, NaiveScores):
        relative, threshold, log_beta = 1, 4 * width, -math.inf
    elif isinstance(scores, SoftmaxAware):
        relative, threshold, log_beta = 1, dot_margin(width, scores.beta), math.log(scores.beta)
    padded = -(-tokens // 64) * 64
    alive = [None if part is None else F.pad(part.detach().float(), (0, padded - tokens)).contiguous()
             for part in (bias, mask)]  # fmt: skip
    pointers = [0 if part is None else part.data_ptr() for part in (places, *alive)]
    plus = int(sign_rule(attn) == "plus")
    numbers = (attn.num_heads, width, tokens, windows, *pointers, relative, threshold, plus, attn.scale, log_beta)
    return Struct(kernels.ATTENTION.pack(*numbers), [places, *alive])


def sign_rule(attn: BinaryAttention) -> ZeroRule:
    """The zero rule of q, k and v."""
    layer = attn.binarize_q
    return "plus" if isinstance(layer, Sign) and layer.zero == "plus" else "exact"


def heads_fastest(attn: nn.Module) -> Tensor | None:
    """The order of proj's inputs: NesT joins heads with their index fastest, the kernels one after the other."""
    if not isinstance(attn, BlockAttention):
        return None
    return torch.arange(attn.num_heads * attn.head_dim).view(attn.head_dim, attn.num_heads).T.flatten()


def packed_attention(q: Tensor, k: Tensor, v: Tensor, beta: float = BETA) -> Tensor:
    """Sums of the active values from the signs of q, k, v (B, H, N, d): the same shape; exact zeros count as 0."""
    native, width = serving(q), q.shape[-1]
    if native is None:
        q, k, v = q.sign(), k.sign(), v.sign()
        return active_keys(q @ k.mT, width, beta).to(v.dtype) @ v
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    data = _products(width, q.shape[-2], beta)
    pairs, pointers = q.shape[0] * q.shape[1], [part.data_ptr() for part in (q, k, v, out)]
    native.attention(data, *pointers, pairs, native.number, torch.get_num_threads())
    return out


@functools.cache
def _products(width: int, tokens: int, beta: float) -> bytes:
    numbers = (1, width, tokens, 1, 0, 0, 0, 1, dot_margin(width, beta), 0, width**-0.5, math.log(beta))
    return kernels.ATTENTION.pack(*numbers)


def block_struct(
    tier: str,
    attn: BinaryAttention | None,
    inside: Struct | None,
    mlp: BinaryMlp | None,
    norms: tuple[nn.Module | None, nn.Module | None] = (None, None),
    gains: tuple[Tensor | None, Tensor | None] = (None, None),
    residual: bool = False,
) -> Struct:
    """A block, or a part of one, for the kernels."""
    parts = [Struct(int(residual).to_bytes(8, "little"), []), norm_struct(norms[0])]
    if attn is None or inside is None:
        parts += [Struct(kernels.NO_LINEAR + kernels.NO_ATTENTION + kernels.NO_LINEAR, [])]
    else:
        assert isinstance(attn.qkv, PackedLinear) and isinstance(attn.proj, PackedLinear)
        qkv = linear_struct(attn.qkv, tier, (sign_rule(attn), False))
        parts += [qkv, inside, linear_struct(attn.proj, tier, None, gains[0], heads_fastest(attn))]
    parts.append(norm_struct(norms[1]))
    if mlp is None:
        parts.append(Struct(2 * kernels.NO_LINEAR, []))
    else:
        assert isinstance(mlp.fc1, PackedLinear) and isinstance(mlp.fc2, PackedLinear)
        fc1 = linear_struct(mlp.fc1, tier, (mlp.fc2.zero, True))
        parts += [fc1, linear_struct(mlp.fc2, tier, None, gains[1])]
    return Struct(b"".join(part.data for part in parts), [part.alive for part in parts])


def run_block(native: Kernels, struct: Struct, x: Tensor, images: int) -> Tensor:
    """x (images, tokens, C) of any shape in between -> the same shape."""
    x = x.contiguous()
    out = torch.empty_like(x)
    tokens = x.numel() // (images * x.shape[-1])
    native.block(struct.data, x.data_ptr(), out.data_ptr(), images, tokens, native.number, torch.get_num_threads())
    return out


def recast(cls: type[M], module: nn.Module) -> M:
    """The same module, its parameters and parts shared, with the forward pass of a class beneath its own."""
    new = cls.__new__(cls)
    new.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(module.__dict__[name])
    return new


class PackedAttention(BinaryAttention):
    """`BinaryAttention` over packed linears; one call of the kernels where there is no mask."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        native = serving(x) if attn_mask is None and not is_causal and served_attention(self) else None
        if native is None or self.proj.out_features != x.shape[-1]:
            return super().forward(x, attn_mask, is_causal)
        tokens = x.shape[1]
        inside = lambda: attention_bytes(self, 1, tokens, None, None, None)  # noqa: E731
        struct = cached(self, native, lambda: block_struct(native.tier, self, inside(), None), tokens)
        return run_block(native, struct, x, x.shape[0])


class PackedWindowAttention(WindowAttention):
    """Swin's `WindowAttention` over packed linears."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(B W, N, C) -> (B W, N, C); mask (W, N, N)."""
        native = serving(x) if served_attention(self) and not underflows(self, mask) else None
        if native is None or self.proj.out_features != x.shape[-1]:
            return super().forward(x, mask)
        windows, tokens = 1 if mask is None else mask.shape[0], x.shape[1]
        bias = self.position_bias()[0]
        struct = block_struct(native.tier, self, attention_bytes(self, windows, tokens, None, bias, mask), None)
        return run_block(native, struct, x, x.shape[0] // windows)


class PackedBlockAttention(BlockAttention):
    """NesT's `BlockAttention` over packed linears."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, N, C) -> (B, T, N, C)."""
        native = serving(x) if served_attention(self) else None
        if native is None:
            return super().forward(x)
        images, windows, tokens, _ = x.shape
        inside = lambda: attention_bytes(self, windows, tokens, None, None, None)  # noqa: E731
        struct = cached(self, native, lambda: block_struct(native.tier, self, inside(), None), (windows, tokens))
        return run_block(native, struct, x, images)


class PackedMlp(BinaryMlp):
    """`BinaryMlp` over packed linears; of one bit all through, one call of the kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        native = serving(x) if served_mlp(self) else None
        if native is None or self.fc2.out_features != x.shape[-1]:
            return super().forward(x)
        struct = cached(self, native, lambda: block_struct(native.tier, None, None, self))
        return run_block(native, struct, x, 1)


# --- timm's blocks ---------------------------------------------------------------------------------------------------


def served_block(block: nn.Module, channels: int) -> tuple[bool, bool]:
    """Whether the kernels compute attention and MLP of a block, norms and residuals with them."""
    attn = served_attention(block.attn) and served_norm(block.norm1, channels)  # type: ignore[arg-type]
    mlp = served_mlp(block.mlp) and served_norm(block.norm2, channels)  # type: ignore[arg-type]
    return attn and block.attn.proj.out_features == channels, mlp  # type: ignore[union-attr, return-value]


def fused(block: Any, native: Kernels, x: Tensor, key: Any, inside: Callable[[], Struct]) -> Tensor | None:
    """A block on x (B, ..., C) through the kernels as far as they go; the MLP in PyTorch where its inputs are float."""
    attends, mixes = served_block(block, x.shape[-1])
    if not attends:
        return None
    gains = gain_of(getattr(block, "ls1", None)), gain_of(getattr(block, "ls2", None))
    make = lambda: block_struct(  # noqa: E731
        native.tier, block.attn, inside(), block.mlp if mixes else None, (block.norm1, block.norm2), gains, True
    )
    out = run_block(native, cached(block, native, make, key), x, x.shape[0])
    if mixes:
        return out
    rest = block.mlp(block.norm2(out))
    return out + (rest if gains[1] is None else rest * gains[1])


class PackedVitBlock(Block):
    """timm's ViT block over packed layers."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        out = None
        if attn_mask is None and not is_causal and (native := serving(x)) is not None:
            inside = lambda: attention_bytes(self.attn, 1, x.shape[1], None, None, None)  # noqa: E731
            out = fused(self, native, x, x.shape[1], inside)
        return super().forward(x, attn_mask, is_causal) if out is None else out


class PackedNestLayer(TransformerLayer):
    """timm's NesT layer over packed layers."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, N, C) -> (B, T, N, C)."""
        out = None
        if (native := serving(x)) is not None:
            inside = lambda: attention_bytes(self.attn, x.shape[1], x.shape[2], None, None, None)  # noqa: E731
            out = fused(self, native, x, x.shape[1:3], inside)
        return super().forward(x) if out is None else out


class PackedSwinBlock(SwinTransformerBlock):
    """timm's Swin block over packed layers. Windows are not copied together: a table says where their tokens stand.

    Padded tokens are zeros after the norm, so that their q, k and v come from the biases alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, height, width, C) -> the same shape."""
        out = None
        attn: Any = self.attn
        masked = True if any(self.shift_size) else None
        if served_attention(attn) and not underflows(attn, masked) and (native := serving(x)) is not None:
            out = fused(self, native, x, x.shape[1:3], lambda: self._windows(x))
        return super().forward(x) if out is None else out

    def _windows(self, x: Tensor) -> Struct:
        height, width = x.shape[1:3]
        (rows, columns), area = self.window_size, self.window_area
        places = torch.arange(1, height * width + 1).view(1, height, width, 1)
        places = places.roll((-self.shift_size[0], -self.shift_size[1]), (1, 2))
        places = F.pad(places, (0, 0, 0, -width % columns, 0, -height % rows))
        places = (window_partition(places, self.window_size).view(-1, area) - 1).to(torch.int32).contiguous()
        mask = self.get_attn_mask(F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows)))
        attn: Any = self.attn
        return attention_bytes(attn, len(places), area, places, attn.position_bias()[0], mask)
