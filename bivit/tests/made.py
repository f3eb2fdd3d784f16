"""What the tests share: small networks of timm's, a COCO folder, and what config files give to an engine."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from bivit.models.architectures import build
from bivit.models.binarize import METHODS, BinaryConfig
from paperkit.command.cli import make_parser
from paperkit.testing.commands import Command

CONFIGS = Path(__file__).parents[1] / "configs"
CPU = {"precision": "32-true", "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "log_every_n_steps": 1}
DEIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SWIN: dict[str, Any] = {
    "img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4],
}  # fmt: skip
NEST: dict[str, Any] = {"img_size": 32}  # timm takes no other widths by its names
PVT: dict[str, Any] = {"embed_dims": [8, 16, 24, 32], "num_heads": [1, 2, 3, 4], "depths": [1, 1, 1, 1]}
"""Networks of milliseconds for images of 32 px (PVT: of any size)."""
SMALL = {"deit": DEIT, "swin": SWIN, "nest": NEST, "pvt_": PVT}

bivit = Command("bivit", "bivit.cli:main", preload=("bivit.training.images", "bivit.training.detection"))


def small(name: str) -> dict[str, Any]:
    """Sizes for a network of the paper's, by the first letters of its name."""
    return SMALL[name[:4]]


def small_network(
    name: str = "deit_tiny_patch16_224",
    config: BinaryConfig | None = METHODS["bivit"],
    classes: int = 10,
    seed: int = 0,
) -> nn.Module:
    """A small network in eval mode."""
    torch.manual_seed(seed)
    return build(name, classes, config, small(name)).eval()


def pictures(count: int = 2, size: int = 32, seed: int = 0) -> Tensor:
    """Images (B, 3, size, size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def options_of(engine: ModuleType, *configs: Path) -> Any:
    """What config files give to an engine."""
    parser = make_parser("bivit train")
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
