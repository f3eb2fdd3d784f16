"""One configuration as a network of its own, with only the parameters that it uses."""

import copy
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.hub import CONFIG, WEIGHTS, read_config, replaced_folder
from paperkit.files.weights import load_strict, read_weights, save_weights
from snnet.method.stitching import StitchedNetwork, mean_logits
from snnet.models.anchors import SNNet


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
        used = network.names_used(self.steps, network.state_dict().keys())
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
        content = {"snnet": description, "config_id": self.config_id}
        with replaced_folder(folder) as temporary:
            save_weights(temporary / WEIGHTS, self.network.state_dict())
            write_atomic(temporary / CONFIG, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "SubNetwork":
        """Read what `save` wrote.

        Raises:
            UserError: if a file is missing or damaged, or the two do not belong together.
        """
        config = read_config(folder)
        try:
            sub_network = cls(SNNet(**config["snnet"]), config["config_id"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder} does not hold an extracted stitch: {type(error).__name__} {error}") from None
        load_strict(sub_network.network, read_weights(folder / WEIGHTS, advice=None), str(folder / WEIGHTS))
        return sub_network.eval()


def _pruned(network: StitchedNetwork, used: set[str]) -> StitchedNetwork:
    """A copy of the network with the parameters that are `used`, and without a copy of the others on the way."""
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
