"""Multiply-adds and parameters of every configuration, in the convention of the released result files.

"FLOPs" are multiply-adds as fvcore counts them: convolutions and matrix products, 5 per element of a LayerNorm, 2 per
element of an evaluated BatchNorm, 1 per input element of an adaptive pooling, nothing for softmax, GELU, bias or sums.
Each step of a route is counted once, on the meta device; a configuration costs the sum of its steps.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from paperkit.results.flops import MacCounter, on_meta
from snnet.method.steps import Step
from snnet.method.stitching import StitchedNetwork


def step_macs(network: StitchedNetwork, input_size: Sequence[int]) -> dict[Step, int]:
    """Multiply-adds of every step that some configuration uses.

    Args:
        input_size: (channels, H, W) of one image.
    """
    meta = cast(StitchedNetwork, on_meta(network).eval())
    counted: dict[Step, int] = {}
    outputs: dict[Step, Any] = {}  # on the meta device a step has one output, whatever fed it
    with torch.no_grad(), torch.device("meta"):
        image = torch.empty(1, *input_size)
        for route in network.routes:
            x = image
            for step in route:
                if step not in outputs:
                    with MacCounter(norms=True) as counter:
                        outputs[step] = meta.run(step, x)
                    counted[step] = counter.macs
                x = outputs[step]
    return counted


def configuration_macs(network: StitchedNetwork, input_size: Sequence[int]) -> list[int]:
    """Multiply-adds per configuration, for one image of (channels, H, W)."""
    counted = step_macs(network, input_size)
    return [sum(counted[step] for step in route) for route in network.routes]


def parameters(network: StitchedNetwork) -> list[int]:
    """Parameters that each configuration really needs: those of its extracted sub-network."""
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return [sum(sizes[name] for name in network.names_used(route, sizes)) for route in network.routes]


def reported_parameters(network: StitchedNetwork) -> list[int] | None:
    """Parameters as the released result files count them, which is not what a configuration needs.

    Of a stitched plain ViT the authors' count leaves out class token and position embedding, and has the final norm
    even though it is skipped. Of a stitched Swin it leaves out the patch merging layers that the front anchor has
    run. For LeViT and ResNet they report none: None.
    """
    families = {family.name for family in network.families}
    if families not in ({"plain ViT"}, {"Swin"}):
        return None
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    counts = []
    for configuration, route in zip(network.configurations, network.routes, strict=True):
        steps = [replace(step, final_norm=True) for step in route]
        if configuration.cuts:
            steps = [s for s in steps if s.kind != "enter_stage" or s.anchor == configuration.anchors[-1]]
        used = network.names_used(steps, sizes)
        if configuration.cuts:
            used = {name for name in used if not name.endswith((".cls_token", ".pos_embed"))}
        counts.append(sum(sizes[name] for name in used))
    return counts
