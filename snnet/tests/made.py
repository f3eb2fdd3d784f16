"""What several tests make: small networks of every family, a tiny recipe on made images, and the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from timm.models.levit import LevitDistilled
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from paperkit.command.cli import make_parser
from paperkit.testing.commands import Command, run_main
from snnet.method.families.resnet import narrow_resnet
from snnet.method.stitching import StitchedNetwork
from snnet.training import images

SNNET = Command("snnet", "snnet.cli:main", preload=("snnet.experiment.run", "snnet.training.images"))
K = 5  # classes of the small networks

CLASSES = ("ant", "bee", "cow")


def vit(width: int, depth: int = 3, image: int = 16) -> nn.Module:
    return VisionTransformer(
        img_size=image, patch_size=8, num_classes=K, embed_dim=width, depth=depth, num_heads=2, mlp_ratio=2
    )


def swin(width: int, third: int = 2, image: int = 32, patch: int = 2) -> nn.Module:
    return SwinTransformer(
        img_size=image,
        patch_size=patch,
        num_classes=K,
        embed_dim=width,
        depths=(2, 2, third, 2),
        num_heads=(1, 1, 2, 2),
        window_size=4,
        mlp_ratio=2,
        drop_path_rate=0.0,
    )


def levit(widths: tuple[int, int, int], depth: int = 2, image: int = 32, **options: bool) -> nn.Module:
    return LevitDistilled(
        img_size=image,
        num_classes=K,
        embed_dim=widths,
        key_dim=4,
        num_heads=(1, 2, 2),
        depth=(depth,) * 3,
        **options,
    )


def resnet(depths: tuple[int, ...], block: type = BasicBlock) -> nn.Module:
    return narrow_resnet(block, depths, (4, 8, 8, 16), stem_width=8, num_classes=K)


NETWORKS: dict[str, tuple[Callable[[], list[nn.Module]], int]] = {
    "plain ViT": (lambda: [vit(8), vit(12)], 16),
    "Swin": (lambda: [swin(4), swin(8, third=4)], 32),
    "LeViT": (lambda: [levit((8, 8, 16)), levit((8, 16, 16), depth=3)], 32),
    "ResNet": (lambda: [resnet((2, 2, 2, 2)), resnet((2, 3, 4, 2), Bottleneck)], 32),
    "ResNet to Swin": (lambda: [resnet((2, 2, 2, 2)), swin(8, third=4, image=64, patch=4)], 64),
}


def build(name: str) -> tuple[StitchedNetwork, torch.Tensor]:
    """A network in eval mode and three images for it."""
    torch.manual_seed(0)
    anchors, image = NETWORKS[name]
    network = StitchedNetwork(anchors(), any_order=True)
    randomise(network)
    return network.eval(), torch.randn(3, 3, image, image)


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Every parameter and statistic away from its initial value, so that one left out or swapped shows."""
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            value.fill_(3)
        else:
            value.normal_(std=0.2)
            if value.ndim == 1 and name.endswith("weight"):
                value.add_(1)


def named_vit(width: int) -> dict[str, Any]:
    """A plain ViT of 16 tokens and three blocks, as a config describes it."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": 3, "num_heads": 2}
    return {"name": "vit_tiny_patch16_224", **options}


def write_recipe(path: Path, data: Path) -> Path:
    """Two anchors, nine configurations; mixing and drop path, so that a step draws random numbers of its own."""
    content = {
        "engine": "images",
        "network": {
            "anchors": [named_vit(16), named_vit(32)],
            "weights": None,
            "init_images": 20,
            "drop_path_rate": 0.1,
        },
        "training": {"mixup": 0.8, "cutmix": 1.0},
        "optim": {"lr": 1e-3, "warmup_epochs": 1},
        "data": {"root": str(data), "num_classes": 3, "batch_size": 4, "num_workers": 0, "input_size": 32},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def images_parser() -> Any:
    """The options of `snnet train --engine images`, as the command reads them."""
    parser = make_parser("snnet train")
    parser.add_argument("--config", action="config")
    parser.add_argument("--engine", type=str, default="images")
    images.add_arguments(parser)
    return parser


def here(*words: str | Path) -> int:
    """The command in this process, with what it prints left to `capsys`; the exit code."""
    return run_main(SNNET.main, ["snnet", *map(str, words)])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said of an error: one line on stderr."""
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


LEVIT = {"name": "levit_192", "img_size": 64, "key_dim": 8, "num_heads": [1, 2, 2], "depth": [2, 2, 2]}
SWIN = {"img_size": 64, "embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 1, 2, 2], "window_size": 2}
ANCHORS: dict[str, list[Any]] = {
    "vit": [named_vit(16), named_vit(32)],
    "levit": [{**LEVIT, "embed_dim": [16, 16, 16]}, {**LEVIT, "embed_dim": [16, 24, 24]}],
    "swin": [{"name": "swin_tiny_patch4_window7_224", **SWIN}, {"name": "swin_small_patch4_window7_224", **SWIN}],
    "resnet": [
        {"name": "resnet18", "channels": [8, 8, 16, 16]},
        {"name": "resnet50", "channels": [8, 8, 16, 16], "layers": [2, 3, 3, 2]},
    ],
}
