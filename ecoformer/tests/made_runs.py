"""Small networks, made data and short runs of the engines on real data."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from paperkit.command.cli import make_parser
from paperkit.data.resumable import seed_generators
from paperkit.testing.commands import Command

CONFIGS = Path(__file__).parents[1] / "configs"
ECOFORMER = Command("ecoformer", "ecoformer.cli:main", preload=("ecoformer.training.images", "ecoformer.training.lra"))
SHRINK: dict[str, Any] = {"embed_dims": [8, 16, 32, 64], "num_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1]}
SMALL_HASH: dict[str, Any] = {"supports": 12, "topk": 4}
"""For 64 px, where stage 3 has 16 tokens."""
CPU = {"precision": "32-true", "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "log_every_n_steps": 1}


def options_of(engine: ModuleType, *configs: Path) -> Any:
    """What config files give to an engine."""
    parser = make_parser("ecoformer train")
    parser.add_argument("--config", action="config")
    parser.add_argument("--engine", type=str)
    engine.add_arguments(parser)
    return parser.instantiate_classes(parser.parse_args([word for path in configs for word in ("--config", str(path))]))


def merged(*configs: Path) -> dict[str, Any]:
    """The content of config files, later over earlier, one level deep as the command line does it."""
    out: dict[str, Any] = {}
    for path in configs:
        for key, value in yaml.safe_load(path.read_text()).items():
            out[key] = {**out.get(key, {}), **value} if isinstance(value, dict) else value
    return out


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def by_hand(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: list[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    advance: Callable[[int, int], None],
    begin: Callable[[int], None] = lambda epoch: None,
    epochs: int = 2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Weights after a run of two processes, in one: the first part's batch fits the hash, gradients are averaged.

    Args:
        parts: a data module for each rank, its `trainer` set by `placed`.
        loss: of network and batch. advance: sets the rates after (steps, epochs). begin: called at an epoch's begin.
    """
    done = 0
    for epoch in range(epochs):
        begin(epoch)
        loaders = [part.train_dataloader() for part in parts]
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for number, batches in enumerate(zip(*loaders, strict=True)):
            optimizer.zero_grad()
            seed_generators(seed, epoch, number, 0)
            for batch in batches:
                (loss(network, batch) / len(parts)).backward()
            optimizer.step()
            done += 1
            advance(done, epoch)
    return network.state_dict()


def placed(data: Any, rank: int, world: int = 2) -> Any:
    """A data module as the process of a rank sees it."""
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, overfit_batches=0, current_epoch=0)
    data.setup()
    return data


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Over all tensors of two state dicts."""
    assert one.keys() == two.keys()
    return max((one[key].double() - two[key].double()).abs().max().item() for key in one)
