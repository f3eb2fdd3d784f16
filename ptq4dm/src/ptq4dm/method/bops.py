"""Bit operations and bytes of a network, by the paper's convention and exactly (section 9 of the method).

A layer of M multiply-adds costs `M * weight_bits * activation_bits` bit operations; what stays float costs 32 x 32.
`nominal` counts every convolution and linear layer at the nominal bits and no attention product, as the paper does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from paperkit.results.flops import MacCounter, on_meta
from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.quant_layer import QuantLayer
from ptq4dm.method.quant_model import QuantConfig, low_bit_layers, quant_layers, quantize

FLOAT = 32


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer: multiply-adds of a call with one image, weights, bits of weights and inputs.

    `scheduled`: a bit schedule changes the bits of its inputs, which those of first and last layers are not.
    """

    macs: int
    weights: int
    bits: tuple[int, int] | None
    scheduled: bool = False

    def bops(self) -> int:
        w, a = self.bits or (FLOAT, FLOAT)
        return self.macs * w * a


@dataclass(frozen=True)
class Cost:
    """What one call with one image costs, and what a file holds.

    Args:
        layers: by full name.
        products: multiply-adds of the products inside attention, which stay float.
        parameters: all, norms and biases included.
        scales: numbers of quantisers in a file: a step and a zero point for each range.
        nominal_bits: of weights and activations.
    """

    layers: dict[str, Layer]
    products: int
    parameters: int
    scales: int
    nominal_bits: tuple[int, int]

    @property
    def layer_macs(self) -> int:
        """Multiply-adds of all layers."""
        return sum(layer.macs for layer in self.layers.values())

    @property
    def quantised_macs(self) -> int:
        """Multiply-adds of those that are quantised."""
        return sum(layer.macs for layer in self.layers.values() if layer.bits is not None)

    def nominal(self, activation_bits: float | None = None) -> float:
        """Bit operations by the paper's convention; with `activation_bits` instead of the network's own."""
        weights, activations = self.nominal_bits
        return self.layer_macs * weights * (activations if activation_bits is None else activation_bits)

    def exact(self, activation_bits: int | None = None) -> int:
        """Bit operations with each layer at its own bits, attention products included.

        Args:
            activation_bits: of the scheduled layers, in a mixed schedule.
        """
        total = self.products * FLOAT * FLOAT
        for layer in self.layers.values():
            if activation_bits is not None and layer.bits is not None and layer.scheduled:
                total += layer.macs * layer.bits[0] * activation_bits
            else:
                total += layer.bops()
        return total

    def float_bops(self, products: bool) -> int:
        """Of the float network, with or without the products inside attention."""
        return (self.layer_macs + (self.products if products else 0)) * FLOAT * FLOAT

    def bytes(self, rest_bits: int = 16) -> float:
        """Of a file: quantised weights packed, all other parameters and the scales at `rest_bits`."""
        quantised = [layer for layer in self.layers.values() if layer.bits is not None]
        packed = sum(layer.weights * layer.bits[0] for layer in quantised if layer.bits)
        rest = self.parameters - sum(layer.weights for layer in quantised) + self.scales
        return (packed + rest * rest_bits) / 8

    def float_bytes(self) -> int:
        """Of the float32 file."""
        return self.parameters * FLOAT // 8

    def mean(self, activation_bits: Sequence[int]) -> tuple[float, float]:
        """Nominal and exact bit operations of a call, on average over steps with these bits."""
        count = len(activation_bits)
        exact = sum(self.exact(bits) for bits in activation_bits)
        return sum(self.nominal(bits) for bits in activation_bits) / count, exact / count


def count_cost(unet: nn.Module, example: Records, config: QuantConfig | None = None) -> Cost:
    """Counts a network on the meta device; the network itself is left as it is.

    Args:
        unet: float, or quantised already.
        example: one call; only its shapes matter, and its batch is divided out.
        config: how a float network would be quantised.
    """
    network = on_meta(unet).eval()
    if not quant_layers(network):
        quantize(network, config)
    config = network.quantization  # type: ignore[assignment]  # nn.Module's annotation knows tensors and modules only
    assert isinstance(config, QuantConfig)
    macs: dict[str, int] = {}
    hooks: list[RemovableHandle] = []
    quantised, scheduled = quant_layers(network), low_bit_layers(network)
    inside = tuple(f"{name}." for name in quantised)
    found: dict[str, nn.Module] = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, QuantLayer | nn.Conv1d | nn.Conv2d | nn.Linear) and not name.startswith(inside)
    }
    for name, module in found.items():
        hooks.append(module.register_forward_hook(_note(macs, name)))
    batch = len(example)
    with torch.no_grad(), torch.device("meta"), MacCounter() as counter:
        predict(network, example.to("meta"))
    for hook in hooks:
        hook.remove()
    layers = {
        name: Layer(
            macs.get(name, 0) // batch,
            module.weight.numel(),  # type: ignore[operator]  # all three classes have a weight
            module.bits if isinstance(module, QuantLayer) else None,
            name in scheduled,
        )
        for name, module in found.items()
    }
    products = counter.macs // batch - sum(layer.macs for layer in layers.values())
    ranges = sum(layer.weight.shape[0] if config.channel_wise_weights else 1 for layer in quantised.values())
    parameters = sum(parameter.numel() for parameter in on_meta(unet).parameters()) - _quantiser_parameters(unet)
    scales = 2 * (ranges + len(quantised))
    return Cost(layers, products, parameters, scales, (config.weight_bits, config.activation_bits))


def _quantiser_parameters(unet: nn.Module) -> int:
    """Learned steps and roundings, which are no weights of the network."""
    return sum(p.numel() for name, p in unet.named_parameters() if "_quantizer" in name)


def _note(macs: dict[str, int], name: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        # `weight[0]` holds what one output value takes: inputs / groups x kernel, or the inputs of a linear layer.
        macs[name] = macs.get(name, 0) + output.numel() * weight[0].numel()

    return hook
