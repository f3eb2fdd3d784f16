"""Which layers of a network are quantised, at how many bits; ranges and switches of them all (section 2 of the method).

Layers are addressed by the names that diffusers gives them. Whatever the rules below do not know stays float and is
named by `report`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from ptq4dm.method.attention_products import product_processors, quantize_products
from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.quant_layer import Quantised, QuantLayer
from ptq4dm.method.quantizer import UniformAffineQuantizer
from ptq4dm.method.range_search import Method, check_bits

Network = TypeVar("Network", bound=nn.Module)

FIRST_LAST = ("time_embedding.linear_1", "conv_in", "conv_out")
"""At 8 bits and not reconstructed. `time_embedding.linear_2` is not among them (the authors count list positions)."""
SKIP = re.compile(r"(^|\.)(\w*skip\w*|conv_shortcut|op|downsamplers\.\d+\.conv)$")
"""1x1 convolutions around a ResBlock and the stride-2 ones between levels: the authors leave them float."""
SHORTCUT = re.compile(r"^up_blocks\.(\d+)\.resnets\.(\d+)\.(conv1|conv_shortcut)$")
"""Layers whose input is a concatenation with a skip connection."""
INIT_RECORDS = 32
"""Calibration records behind the ranges of activations."""


@dataclass(frozen=True)
class QuantConfig:
    """How a network is quantised; the defaults are those of the authors' scripts.

    Args:
        weight_bits, activation_bits: 2 to 8.
        channel_wise_weights: one range per output channel; False in the authors' code, True recommended: held-out
            noise error falls a lot.
        scale_method: of the range searches of weights and activations.
        first_last_bits: of weights and inputs of `first_last`; None leaves them at the bits of all others.
        skip_bits: of skip and downsampling convolutions and of the attention projections that come from a `Conv1d`;
            None leaves them float (the authors' mode), 8 is "8-bit skip and attention", with smaller files.
        attention_matmul_bits: of q, k, v and the softmax's output, 2 to 8; None leaves the products float (the
            authors' mode; Q-Diffusion quantises them).
        shortcut_split: own ranges for the two halves of a concatenated input (Q-Diffusion).
        first_last: full names of the layers that get `first_last_bits`.

    Raises:
        UserError: bits outside 2 to 8, or an unknown scale method.
    """

    weight_bits: int = 4
    activation_bits: int = 8
    channel_wise_weights: bool = False
    scale_method: Method = "mse"
    first_last_bits: int | None = 8
    skip_bits: int | None = None
    attention_matmul_bits: int | None = None
    shortcut_split: bool = False
    first_last: tuple[str, ...] = FIRST_LAST

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "first_last_bits", "skip_bits", "attention_matmul_bits"):
            value = getattr(self, name)
            if value is not None or name in ("weight_bits", "activation_bits"):
                check_bits(value, name)
        if self.scale_method not in ("mse", "max", "max_scale"):
            raise UserError(f"scale method {self.scale_method!r}; it is one of mse, max, max_scale")


@dataclass(frozen=True)
class Report:
    """What became of each layer, by its full name.

    Args:
        bits: of a quantised layer: weights, inputs.
        left_float: layers that the method leaves float, and why.
        unknown: layers whose class the rules do not know, left float: the class.
        unmatched: names of `first_last` that the network does not have.
    """

    bits: dict[str, tuple[int, int]]
    left_float: dict[str, str]
    unknown: dict[str, str]
    unmatched: tuple[str, ...]

    def lines(self) -> list[str]:
        """For a reader: counts by bits, then each layer that is not quantised by the rule of all others."""
        counts: dict[tuple[int, int], int] = {}
        for bits in self.bits.values():
            counts[bits] = counts.get(bits, 0) + 1
        found = [f"{count} layers at W{w}A{a}" for (w, a), count in sorted(counts.items(), reverse=True)]
        reasons: dict[str, int] = {}
        for reason in self.left_float.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        found += [f"{count} layers float: {reason}" for reason, count in reasons.items()]
        found += [f"unknown, left float: {name} ({kind})" for name, kind in self.unknown.items()]
        return [*found, *[f"no layer {name}, so none gets its bits" for name in self.unmatched]]


def quantize(unet: Network, config: QuantConfig | None = None) -> Network:
    """Wraps the layers of `unet` in place, with ranges still unknown and every switch off, and returns it.

    `initialise_ranges` takes the ranges. Load EMA weights before: names of parameters stay, but a swap is no longer
    needed.

    Raises:
        UserError: it is quantised already, or there is no layer to quantise.
    """
    config = config or QuantConfig()
    if quant_layers(unet):
        raise UserError("this network is quantised already")
    chosen = {name: layer for name, layer in _plain_layers(unet) if _reason(unet, name, config) is None}
    if not chosen:
        raise UserError(f"{type(unet).__name__} has no convolution or linear layer to quantise")
    for name, layer in chosen.items():
        _replace(unet, layer, _wrap(unet, name, layer, config))
    if config.attention_matmul_bits is not None:
        quantize_products(unet, config.attention_matmul_bits, config.scale_method)
    unet.quantization = config  # type: ignore[assignment]  # nn.Module's annotation knows tensors and modules only
    return unet


def config_of(unet: nn.Module) -> QuantConfig:
    """What `quantize` was told.

    Raises:
        UserError: the network is not quantised.
    """
    config = getattr(unet, "quantization", None)
    if not isinstance(config, QuantConfig):
        raise UserError(f"this {type(unet).__name__} is not quantised")
    return config


def quant_layers(unet: nn.Module) -> dict[str, QuantLayer]:
    """Its quantised layers by full name, in module order."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, QuantLayer)}


def low_bit_layers(unet: nn.Module) -> dict[str, QuantLayer]:
    """Those at the bits of the config: neither first nor last, nor in the 8-bit skip and attention set."""
    config = config_of(unet)
    fixed = set(config.first_last) if config.first_last_bits is not None else set[str]()
    found = quant_layers(unet).items()
    return {name: layer for name, layer in found if name not in fixed and not _is_kept(unet, name)}


def set_quantized(unet: nn.Module, weights: bool, activations: bool) -> None:
    """Says for every layer what a forward pass quantises; neither gives the float network."""
    for layer in quant_layers(unet).values():
        layer.weights_quantized, layer.inputs_quantized = weights, activations
    for processor in product_processors(unet):
        processor.quantized = activations


def act_quantizers(unet: nn.Module) -> dict[str, UniformAffineQuantizer]:
    """The quantisers of all activations by full name: inputs of layers, and products of attention where the config
    has them."""
    found = {name: module for name, module in unet.named_modules() if isinstance(module, UniformAffineQuantizer)}
    return {name: quantizer for name, quantizer in found.items() if quantizer.learned_step}


@torch.no_grad()
def initialise_weight_ranges(unet: nn.Module) -> None:
    """Takes the range of every weight from the weight itself, where the rounding is not learned already.

    Raises:
        UserError: a weight that holds no numbers, with its name.
    """
    for layer in quant_layers(unet).values():
        pieces = layer.parts(layer.weight, 1)
        for (_, quantizer), piece in zip(layer.weight_quantizers, pieces, strict=True):
            if isinstance(quantizer, UniformAffineQuantizer):
                quantizer.initialise(piece)


@torch.no_grad()
def initialise_activation_ranges(unet: nn.Module, records: Records, count: int = INIT_RECORDS) -> None:
    """Takes the range of every activation in one pass, behind quantised weights and quantised inputs of its own.

    The network is left with weights and activations quantised, and in evaluation mode.

    Args:
        records: calibration records, shuffled; the first `count` are used.

    Raises:
        UserError: fewer than `count` records; an activation that holds no numbers, with its name; layers that the
            pass did not reach.
    """
    if len(records) < count:
        raise UserError(f"{len(records)} calibration records; {count} are needed for the ranges of activations")
    quantizers = act_quantizers(unet)
    for quantizer in quantizers.values():
        quantizer.initialised = False
    set_quantized(unet, weights=True, activations=True)
    predict(unet.eval(), records[:count].to(next(unet.parameters()).device))
    missed = [name for name, quantizer in quantizers.items() if not quantizer.initialised]
    if missed:
        raise UserError(f"one pass of the network did not reach {len(missed)} quantisers, first {missed[0]}")


def initialise_ranges(unet: nn.Module, records: Records, count: int = INIT_RECORDS) -> None:
    """Takes all ranges: of the weights, then of the activations behind them.

    Arguments and errors are those of `initialise_activation_ranges`.
    """
    initialise_weight_ranges(unet)
    initialise_activation_ranges(unet, records, count)


def average_activation_ranges(unet: nn.Module, records: Records, batch: int = INIT_RECORDS) -> None:
    """Takes the ranges of activations as running averages of the extremes of each batch, as Q-Diffusion does.

    In place of `initialise_activation_ranges`, whose search sees one batch only.

    Raises:
        UserError: fewer records than one batch.
    """
    initialise_activation_ranges(unet, records, batch)
    quantizers = act_quantizers(unet).values()
    try:
        for quantizer in quantizers:
            quantizer.averaging = True
        with torch.no_grad():
            for first in range(0, len(records) - batch + 1, batch):
                predict(unet, records[first : first + batch].to(next(unet.parameters()).device))
    finally:
        for quantizer in quantizers:
            quantizer.averaging = False


class ActivationRange(NamedTuple):
    """Bits, step and zero point of one activation."""

    bits: int
    delta: Tensor
    zero_point: Tensor


def activation_ranges(unet: nn.Module) -> dict[str, ActivationRange]:
    """All of them, copied; with `set_activation_ranges` one set of weights serves several bit widths of activations."""
    found = act_quantizers(unet).items()
    return {name: ActivationRange(q.bits, q.delta.detach().clone(), q.zero_point.clone()) for name, q in found}


def set_activation_ranges(unet: nn.Module, ranges: Mapping[str, ActivationRange]) -> None:
    """Puts ranges that `activation_ranges` gave into the network.

    Raises:
        UserError: they are of other layers than the network has.
    """
    quantizers = act_quantizers(unet)
    if odd := sorted(ranges.keys() ^ quantizers.keys()):
        raise UserError(f"ranges and network differ in {len(odd)} quantisers, first {odd[0]}")
    for name, (bits, delta, zero_point) in ranges.items():
        quantizers[name].bits = bits
        quantizers[name].set_range(delta, zero_point)


def set_activation_bits(unet: nn.Module, bits: int) -> None:
    """Another bit width for the inputs of the low-bit layers; their ranges are then unknown.

    Raises:
        UserError: bits outside 2 to 8.
    """
    check_bits(bits, "activation bits")
    for layer in low_bit_layers(unet).values():
        for _, quantizer in layer.act_quantizers:
            quantizer.bits, quantizer.initialised = bits, False


def report(unet: nn.Module) -> Report:
    """Which layers are at which bits, which are float, and why.

    Raises:
        UserError: the network is not quantised.
    """
    config, layers = config_of(unet), quant_layers(unet)
    plain = [(name, _reason(unet, name, config)) for name, module in _plain_layers(unet)]
    unknown = {
        name: type(module).__name__
        for name, module in unet.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
        and type(module) not in PLAIN
        and not isinstance(module, QuantLayer | nn.Embedding)
        and "quantizer" not in name.rpartition(".")[2]
    }
    absent = [name for name in config.first_last if name not in layers] if config.first_last_bits is not None else []
    return Report(
        bits={name: layer.bits for name, layer in layers.items()},
        left_float={name: reason for name, reason in plain if reason is not None},
        unknown=unknown,
        unmatched=tuple(absent),
    )


PLAIN = (nn.Conv2d, nn.Linear)
"""Exactly these classes are wrapped: a subclass may compute something else, or be computed around."""


def _plain_layers(unet: nn.Module) -> Iterator[tuple[str, Quantised]]:
    inside = tuple(f"{name}." for name in quant_layers(unet))
    for name, module in unet.named_modules():
        if type(module) in PLAIN and not name.startswith(inside):
            yield name, cast(Quantised, module)


def _is_kept(unet: nn.Module, name: str) -> bool:
    """Whether the authors leave this layer float."""
    return _reason_to_keep(unet, name) is not None


def _reason_to_keep(unet: nn.Module, name: str) -> str | None:
    if SKIP.search(name):
        return "convolution of a skip connection or between levels"
    parts = name.split(".")
    for depth in range(1, len(parts)):
        # UNet2DModel's attention stands for the authors' AttentionBlock, which they never wrap.
        if getattr(unet.get_submodule(".".join(parts[:depth])), "_from_deprecated_attn_block", False):
            return "attention projection, a Conv1d in the authors' network"
    return None


def _reason(unet: nn.Module, name: str, config: QuantConfig) -> str | None:
    """Why a layer stays float; None if it is quantised."""
    return _reason_to_keep(unet, name) if config.skip_bits is None else None


def _bits(unet: nn.Module, name: str, config: QuantConfig) -> tuple[int, int]:
    if config.first_last_bits is not None and name in config.first_last:
        return config.first_last_bits, config.first_last_bits
    if config.skip_bits is not None and _is_kept(unet, name):
        return config.skip_bits, config.skip_bits
    return config.weight_bits, config.activation_bits


def _wrap(unet: nn.Module, name: str, layer: Quantised, config: QuantConfig) -> QuantLayer:
    weight_bits, activation_bits = _bits(unet, name, config)

    def pair(suffix: str) -> tuple[UniformAffineQuantizer, UniformAffineQuantizer]:
        found = (
            UniformAffineQuantizer(weight_bits, config.channel_wise_weights, config.scale_method),
            UniformAffineQuantizer(activation_bits, scale_method=config.scale_method, learned_step=True),
        )
        found[0].name, found[1].name = f"{name}.weight_quantizer{suffix}", f"{name}.act_quantizer{suffix}"
        return cast(tuple[UniformAffineQuantizer, UniformAffineQuantizer], tuple(q.to(layer.weight) for q in found))

    match = SHORTCUT.match(name) if config.shortcut_split else None
    if match is None:
        return QuantLayer(layer, *pair(""))
    block, index = int(match[1]), int(match[2])
    before = "mid_block" if block == index == 0 else f"up_blocks.{block if index else block - 1}"
    resnets = cast(nn.ModuleList, unet.get_submodule(f"{before}.resnets"))
    return QuantLayer(layer, *pair(""), split=(cast(int, resnets[index - 1].out_channels), *pair("_0")))


def _replace(unet: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Wherever it stands: diffusers keeps some layers under two names."""
    for module in list(unet.modules()):
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new)
