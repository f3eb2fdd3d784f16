"""What training did to binary layers: their scales, and how much gradient gets through their signs."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bivit.method.binary_linear import BinaryLinear, mean_scale
from paperkit.results.report import COLORS, figure, style


def learned_scales(model: nn.Module) -> dict[str, tuple[list[float], list[float]]]:
    """Layer -> mean |W| of each output channel, and its learned scale; layers without a learned one are left out."""
    return {
        name: (mean_scale(layer.weight).flatten().tolist(), layer.scaling_factor.flatten().tolist())
        for name, layer in model.named_modules()
        if isinstance(layer, BinaryLinear) and layer.scaling_factor is not None
    }


def draw_scales(scales: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Learned scale of each output channel against mean |W|, which it began as: what `learned_scales` gives."""
    with style():
        columns = min(4, len(scales))
        rows = -(-len(scales) // columns)
        drawn, panels = figure(rows, columns, width=2.9 * columns, height=2.6 * rows + 0.5, squeeze=False)
        for panel, (name, (means, learned)) in zip(panels.flat, scales.items(), strict=False):
            panel.plot(means, learned, ".", color=COLORS[0], alpha=0.6)
            low, high = min(*means, *learned), max(*means, *learned)
            panel.plot([low, high], [low, high], "--", color=COLORS[1], linewidth=1)
            panel.set_title(name, fontsize=9)
        for panel in panels.flat[len(scales) :]:
            panel.axis("off")
        drawn.supxlabel("mean |W| of the channel", fontsize=10)
        drawn.supylabel("learned scale", fontsize=10)
        drawn.suptitle("Scales, a point a channel; on the dashed line the learned one equals mean |W|")
    return drawn


@torch.no_grad()
def surviving_gradient(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Place -> share of entries, in percent, that lie inside the window |x| < 1 of a straight-through sign.

    Places are the inputs of binary linears, the outputs of `qkv` (signed before the scores), and centred weights.
    """
    shares: dict[str, float] = {}

    def share(x: Tensor) -> float:
        return 100 * float((x.abs() < 1).double().mean())

    def note(name: str, layer: BinaryLinear) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if layer.rule.inputs != "float":
                shares[f"{name}, input"] = share(inputs[0])
            if name.endswith("qkv"):
                shares[f"{name}, output"] = share(output)
            if layer.rule.weights == "sign":
                shares[f"{name}, weight"] = share(layer.centred_weight())

        return layer.register_forward_hook(hook)

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BinaryLinear)}
    hooks = [note(name, layer) for name, layer in layers.items()]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()  # type: ignore[attr-defined]
    return shares


def draw_surviving(shares: Mapping[str, float], network: str) -> Figure:
    """What `surviving_gradient` gives as bars."""
    with style():
        drawn, panel = figure(width=7.5, height=1.2 + 0.24 * len(shares))
        names = list(shares)[::-1]
        panel.barh(names, [shares[name] for name in names], color=COLORS[0])
        panel.set(xlabel="entries inside the window |x| < 1 of the sign, %", xlim=(0, 100))
        panel.tick_params(axis="y", labelsize=8)
        panel.set_title(f"{network}: gradient that survives each sign")
    return drawn
