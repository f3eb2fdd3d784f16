"""BatchNorm statistics estimated again for every configuration (an addition; the released weights share one set).

A block of the end anchor sees inputs from several fronts, and its running mean and variance are a mixture of them all.
Estimated again for one configuration, on a few training batches, they fit what that configuration sees. This costs a
small dict per configuration and no training. Off unless `StitchedNetwork.statistics` is set.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paperkit.errors import UserError
from snnet.method.statistics import StitchStatistics
from snnet.method.stitching import StitchedNetwork

BUFFERS = ("running_mean", "running_var")


@torch.no_grad()
def recalibrate(network: StitchedNetwork, batches: Sequence[Tensor], config_ids: Iterable[int]) -> StitchStatistics:
    """Estimate the statistics of several configurations; the network itself is left as it is.

    Everything but BatchNorm runs in eval mode (no drop path, no dropout). Every batch counts the same.

    Args:
        batches: training images (B, 3, H, W), a few hundred in all, seen as in evaluation.

    Raises:
        UserError: if the network has no BatchNorm, or there is no batch.
    """
    norms = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        raise UserError("this network has no BatchNorm to recalibrate (LeViT and ResNet have)")
    if not batches:
        raise UserError("recalibration needs at least one batch of images")
    before, modes = network.statistics, {module: module.training for module in network.modules()}
    network.statistics = None
    found = {}
    try:
        network.eval()
        for config_id in config_ids:
            used = network.names_used(network.routes[network.check_id(config_id)], [f"{name}." for name in norms])
            found[config_id] = _estimate(network, batches, config_id, {name: norms[name[:-1]] for name in sorted(used)})
    finally:
        network.statistics = before
        for module, mode in modes.items():
            module.training = mode
    return StitchStatistics(found)


def _estimate(
    network: StitchedNetwork, batches: Sequence[Tensor], config_id: int, norms: dict[str, nn.Module]
) -> dict[str, Tensor]:
    """Plain averages over the batches, gathered in fresh buffers that are taken out again."""
    own = {name: (dict(module._buffers), module.momentum) for name, module in norms.items()}
    try:
        for module in norms.values():
            module._buffers = {key: b if b is None else torch.zeros_like(b) for key, b in module._buffers.items()}
            module.momentum = None  # type: ignore[assignment]
            module.training = True
        for images in batches:
            network(images, config_id)
        gathered = ((f"{name}{buffer}", norm._buffers[buffer]) for name, norm in norms.items() for buffer in BUFFERS)
        return {name: value for name, value in gathered if value is not None}
    finally:
        for name, module in norms.items():
            module._buffers, module.momentum = own[name]
            module.training = False
