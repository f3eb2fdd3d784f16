"""What the tests share: small networks, short runs of the engines, and made data of the Long Range Arena's tasks."""

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from ecoformer.method.attention import fit_hashes
from ecoformer.method.kernel_hash import normalise
from ecoformer.models.pvt import PVTv2
from ecoformer.training.listops import SHORT, examples
from paperkit.command.cli import make_parser
from paperkit.data.seeding import seed_generators
from paperkit.testing.commands import Command
from paperkit.testing.made_images import make_cifar

GOLDEN = Path(__file__).parent / "golden"
TINY: dict[str, Any] = dict(
    embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), depths=(1, 1, 2, 1), nbits=8,
    supports=4, num_classes=10, fit=dict(topk=2, iterations=5),
)  # fmt: skip
"""A PVTv2 of milliseconds; the hash of stage 3 needs images of 32 px at least."""

CONFIGS = Path(__file__).parents[1] / "configs"
SHRINK: dict[str, Any] = {"embed_dims": [8, 16, 32, 64], "num_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1]}
SMALL_HASH: dict[str, Any] = {"supports": 12, "topk": 4}
"""For 64 px, where stage 3 has 16 tokens."""
CPU = {"precision": "32-true", "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "log_every_n_steps": 1}

ecoformer = Command("ecoformer", "ecoformer.cli:main", preload=("ecoformer.training.images", "ecoformer.training.lra"))


def tokens(batch: int = 2, heads: int = 2, count: int = 24, width: int = 8, seed: int = 0) -> Tensor:
    """Normalised tokens (B, H, N, C)."""
    return normalise(torch.randn(batch, heads, count, width, generator=torch.Generator().manual_seed(seed)))


def fitted_pvt(**changes: Any) -> PVTv2:
    """A tiny network in eval mode, its hashes fitted on noise."""
    torch.manual_seed(0)
    model = PVTv2(**{**TINY, **changes}).eval()
    fit_hashes(model, torch.randn(2, 3, 64, 64))
    return model


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


def make_task(root: Path, task: str, count: int = 20) -> Path:
    """A folder of `count` training samples or a few more."""
    made = {"listops": make_listops, "text": make_texts, "retrieval": make_pairs, "pathfinder": make_pathfinder}
    root.mkdir(parents=True, exist_ok=True)
    if task == "image":
        return make_cifar(root, per_file=10)
    return made[task](root, count)


def make_listops(root: Path, count: int = 20) -> Path:
    source = examples(0, SHORT)
    for split in ("train", "val", "test"):
        lines = [f"{e.source}\t{e.target}\n" for e in islice(source, count)]
        (root / f"basic_{split}.tsv").write_text("Source\tTarget\n" + "".join(lines))
    return root


def make_texts(root: Path, count: int = 20, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """IMDB's layout; without splits, one folder of pos and neg."""
    draw = random.Random(0)
    for split in splits or ("",):
        for label, word in (("pos", "good "), ("neg", "bad ")):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count // 2):
                (folder / f"{i}_7.txt").write_text(word * draw.randint(1, 12))
    return root


def make_pairs(root: Path, count: int = 20) -> Path:
    for split in ("train", "eval", "test"):
        lines = [f"{i % 2}.0\tP{i}\tQ{i}\tsome text {i}\t{'some' if i % 2 else 'another'} text\n" for i in range(count)]
        (root / f"new_aan_pairs.{split}.tsv").write_text("".join(lines))
    return root


def make_pathfinder(root: Path, count: int = 20) -> Path:
    """Noise in place of paths; one image is empty, as some of the arena's are."""
    folder = root / "curv_contour_length_14"
    (folder / "metadata").mkdir(parents=True)
    (folder / "imgs" / "0").mkdir(parents=True)
    generator, lines = np.random.default_rng(0), []
    for i in range(count + 6):
        path = folder / "imgs" / "0" / f"sample_{i}.png"
        Image.fromarray(generator.integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
        lines.append(f"imgs/0 sample_{i}.png {i} {i % 2} 1.8 6\n")
    (folder / "imgs" / "0" / "sample_3.png").write_bytes(b"")
    (folder / "metadata" / "0.npy").write_text("".join(lines))
    return root
