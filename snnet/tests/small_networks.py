"""Small stitched networks of every family, with seeded weights that make every part matter."""

from collections.abc import Callable

import torch
from timm.models.levit import LevitDistilled
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from snnet.method.families.resnet import narrow_resnet
from snnet.method.stitching import StitchedNetwork

CLASSES = 5


def vit(width: int, depth: int = 3, image: int = 16) -> nn.Module:
    return VisionTransformer(
        img_size=image, patch_size=8, num_classes=CLASSES, embed_dim=width, depth=depth, num_heads=2, mlp_ratio=2
    )


def swin(width: int, third: int = 2, image: int = 32, patch: int = 2) -> nn.Module:
    return SwinTransformer(
        img_size=image,
        patch_size=patch,
        num_classes=CLASSES,
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
        num_classes=CLASSES,
        embed_dim=widths,
        key_dim=4,
        num_heads=(1, 2, 2),
        depth=(depth,) * 3,
        **options,
    )


def resnet(depths: tuple[int, ...], block: type = BasicBlock) -> nn.Module:
    return narrow_resnet(block, depths, (4, 8, 8, 16), stem_width=8, num_classes=CLASSES)


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
