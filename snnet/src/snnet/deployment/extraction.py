"""One configuration as a network of its own, with only the parameters that it uses."""

import copy
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.runs import write_atomic
from paperkit.files.weights import load_strict, read_weights, save_weights
from snnet.method.counting import names_used
from snnet.method.stitching import StitchedNetwork
from snnet.models.anchors import SNNet
from snnet.training.evaluation import mean_logits


class SubNetwork(nn.Module):
    """A single configuration: the front anchor's first blocks, a stitching layer, the end anchor's last blocks.

    Its weights are copies; the stitched network may be thrown away. Keys are those of the stitched network.

    Args:
        network: the stitched network.
        config_id: the configuration.
    """

    def __init__(self, network: StitchedNetwork, config_id: int) -> None:
        super().__init__()
        self.config_id = network.check_id(config_id)
        self.steps = network.routes[config_id]
        used = names_used(self.steps, network, network.state_dict().keys())
        with network.own_statistics(config_id):  # of BatchNorms, where they were estimated for each configuration
            self.network = _pruned(network, used).set_stitch(config_id)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes); of a network with two heads their mean."""
        return mean_logits(self.network(x))

    def save(self, folder: Path, description: dict[str, Any]) -> None:
        """Write `model.safetensors` and `config.json`, which `load` reads.

        Args:
            description: arguments of `SNNet` that build the stitched network.
        """
        save_weights(folder / "model.safetensors", self.network.state_dict())
        write_atomic(
            folder / "config.json", json.dumps({"snnet": description, "config_id": self.config_id}, indent=2) + "\n"
        )

    @classmethod
    def load(cls, folder: Path) -> "SubNetwork":
        """Read what `save` wrote."""
        try:
            config = json.loads((folder / "config.json").read_text())
            description, config_id = config["snnet"], config["config_id"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} does not hold an extracted stitch: {type(error).__name__} {error}") from None
        sub_network, path = cls(SNNet(**description), config_id), folder / "model.safetensors"
        load_strict(sub_network.network, read_weights(path), str(path))
        return sub_network.eval()


def _pruned(network: StitchedNetwork, used: set[str]) -> StitchedNetwork:
    """A copy of the network without the parameters that are not `used`; those are never copied."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        for name, parameter in network.named_parameters()
        if name not in used
    }
    kept = copy.deepcopy(network, memo)
    _prune(kept, "", used)
    return kept


def _prune(module: nn.Module, prefix: str, used: set[str]) -> None:
    for name, child in module.named_children():
        state = [f"{prefix}{name}.{key}" for key in child.state_dict()]
        if state and not used.intersection(state):
            module._modules[name] = nn.Identity()
        else:
            _prune(child, f"{prefix}{name}.", used)
    for name in list(module._parameters):
        if f"{prefix}{name}" not in used:
            module._parameters[name] = None
