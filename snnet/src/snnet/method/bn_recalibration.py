"""BatchNorm statistics of one's own for every configuration (an addition; the released weights share one set).

A block of the end anchor sees inputs from several fronts, and its running mean and variance are a mixture of them all.
Estimated again per configuration on a few training batches they fit what the configuration really sees, at the cost of
a small dict a configuration and no training. Off unless `StitchedNetwork.statistics` is set.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paperkit.errors import UserError
from paperkit.files.weights import read_weights, save_weights
from snnet.method.counting import names_used
from snnet.method.stitching import StitchedNetwork

BUFFERS = ("running_mean", "running_var")


class StitchStatistics:
    """Running means and variances per configuration, put in place while that configuration runs in eval mode.

    Args:
        by_id: configuration id -> `<module>.running_mean` and `<module>.running_var` -> (C,). Configurations that are
            not in it run with the network's own statistics.

    Example:
        >>> network.statistics = recalibrate(network, batches, range(network.num_configurations))
        >>> logits = network.set_stitch(7)(images)
    """

    def __init__(self, by_id: dict[int, dict[str, Tensor]]) -> None:
        self.by_id = by_id

    @contextmanager
    def applied(self, network: nn.Module, config_id: int) -> Iterator[None]:
        """Inside, the network has the statistics of `config_id`; no number is copied, and outside it has its own."""
        own: list[tuple[nn.Module, str, Tensor | None]] = []
        try:
            statistics = self.by_id.get(config_id, {})
            for name in statistics:
                path, _, buffer = name.rpartition(".")
                module = network.get_submodule(path)
                current = module._buffers[buffer]
                assert current is not None
                own.append((module, buffer, current))
                statistics[name] = module._buffers[buffer] = statistics[name].to(current)  # copied on a new device only
            yield
        finally:
            for module, buffer, kept in own:
                module._buffers[buffer] = kept

    def save(self, path: str | Path) -> None:
        """One safetensors file beside the weights, keys `<id>.<module>.running_mean`."""
        save_weights(path, {f"{i}.{name}": value for i, found in self.by_id.items() for name, value in found.items()})

    @classmethod
    def load(cls, path: str | Path, network: StitchedNetwork) -> "StitchStatistics":
        """Read what `save` wrote.

        Raises:
            UserError: if the file cannot be read, or was made for another network.
        """
        own = dict(network.named_buffers())
        by_id: dict[int, dict[str, Tensor]] = {}
        for key, value in read_weights(path).items():
            config_id, _, name = key.partition(".")
            if not config_id.isdigit() or name not in own or own[name].shape != value.shape:
                raise UserError(f"{path} holds statistics of another network: {key} has no place in this one")
            by_id.setdefault(network.check_id(int(config_id)), {})[name] = value
        return cls(by_id)


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
            used = names_used(network.routes[network.check_id(config_id)], network, [f"{name}." for name in norms])
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
