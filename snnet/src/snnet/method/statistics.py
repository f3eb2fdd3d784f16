"""BatchNorm statistics of a stitched network, one set per configuration (an addition; the released weights share one).

Typed on plain modules, so that `stitching` can hold them and `bn_recalibration` can estimate them for a network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.weights import read_weights, save_weights


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
        """Inside, the network has the statistics of `config_id`, after it its own again; no tensor is copied."""
        own: list[tuple[nn.Module, str, Tensor | None]] = []
        try:
            statistics = self.by_id.get(config_id, {})
            for name in statistics:
                path, _, buffer = name.rpartition(".")
                module = network.get_submodule(path)
                current = module._buffers[buffer]
                assert current is not None
                own.append((module, buffer, current))
                statistics[name] = module._buffers[buffer] = statistics[name].to(
                    current
                )  # a copy only on another device
            yield
        finally:
            for module, buffer, kept in own:
                module._buffers[buffer] = kept

    def save(self, path: str | Path) -> None:
        """One safetensors file beside the weights, keys `<id>.<module>.running_mean`."""
        save_weights(path, {f"{i}.{name}": value for i, found in self.by_id.items() for name, value in found.items()})

    @classmethod
    def load(cls, path: str | Path, network: nn.Module) -> "StitchStatistics":
        """Read what `save` wrote.

        Args:
            network: the `StitchedNetwork` that the statistics were made for.

        Raises:
            UserError: if the file cannot be read, or was made for another network.
        """
        own, check_id = dict(network.named_buffers()), cast(Any, network).check_id
        by_id: dict[int, dict[str, Tensor]] = {}
        for key, value in read_weights(path).items():
            config_id, _, name = key.partition(".")
            if not config_id.isdigit() or name not in own or own[name].shape != value.shape:
                raise UserError(f"{path} holds statistics of another network: {key} has no place in this one")
            by_id.setdefault(check_id(int(config_id)), {})[name] = value
        return cls(by_id)
