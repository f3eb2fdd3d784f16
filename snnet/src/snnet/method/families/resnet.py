"""ResNet (timm `ResNet`, basic and bottleneck blocks): stages of convolutions on (B, C, H, W) maps.

A stage's first block shrinks the map itself, so entering a stage does nothing.
"""

from typing import cast

from timm.models.resnet import BasicBlock, Bottleneck, ResNet, make_blocks
from torch import Tensor, nn

from snnet.method.families.family import Grid, TokenLayout


class ResNetFamily:
    """timm's `ResNet`: any depths and widths. Stages count from 0, so stages 1 and 2 are `layer2` and `layer3`."""

    name: str = "ResNet"
    layout: TokenLayout = "channels_first"
    stitched_stages: tuple[int, ...] | None = (1, 2)

    def takes(self, anchor: nn.Module) -> bool:
        return type(anchor) is ResNet

    def depths(self, anchor: nn.Module) -> tuple[int, ...]:
        return tuple(len(_stage(anchor, stage)) for stage in range(4))

    def width(self, anchor: nn.Module, stage: int) -> int:
        return cast(int, _resnet(anchor).feature_info[stage + 1]["num_chs"])

    def grid(self, anchor: nn.Module) -> Grid:
        return Grid(tuple(cast(int, stage["reduction"]) for stage in _resnet(anchor).feature_info[1:]), None)

    def embed(self, anchor: nn.Module, x: Tensor) -> Tensor:
        resnet = _resnet(anchor)
        return resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(x))))

    def enter_stage(self, anchor: nn.Module, stage: int, x: Tensor) -> Tensor:
        return x

    def block(self, anchor: nn.Module, stage: int, index: int, x: Tensor) -> Tensor:
        return _stage(anchor, stage)[index](x)

    def head(self, anchor: nn.Module, x: Tensor, final_norm: bool) -> Tensor:
        return _resnet(anchor).forward_head(x)

    def owned_by(self, anchor: nn.Module, step: str, stage: int, index: int, final_norm: bool) -> tuple[str, ...]:
        return {
            "embed": ("conv1.", "bn1.", "maxpool."),
            "enter_stage": (),
            "block": (f"layer{stage + 1}.{index}.",),
            "head": ("fc.",),
        }[step]


def narrow_resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, ...],
    channels: tuple[int, ...],
    stem_width: int,
    num_classes: int,
    base_width: int = 64,
) -> ResNet:
    """A ResNet with any width of its 7x7 stem, which timm fixes at 64.

    Args:
        channels: planes per stage; a bottleneck stage has four times as many channels.
        base_width: a bottleneck's inner width is planes x base_width / 64.
    """
    resnet = ResNet(block, depths, num_classes=num_classes, channels=channels, base_width=base_width)  # type: ignore[arg-type]
    resnet.conv1 = nn.Conv2d(3, stem_width, kernel_size=7, stride=2, padding=3, bias=False)  # type: ignore[assignment]
    resnet.bn1 = nn.BatchNorm2d(stem_width)
    kinds = (block,) * len(channels)
    stages, _ = make_blocks(
        kinds, channels, depths, stem_width, base_width=base_width, act_layer=nn.ReLU, norm_layer=nn.BatchNorm2d
    )
    resnet.layer1 = dict(stages)["layer1"]
    resnet.feature_info[0]["num_chs"] = stem_width
    return resnet


def _resnet(anchor: nn.Module) -> ResNet:
    return cast(ResNet, anchor)


def _stage(anchor: nn.Module, stage: int) -> nn.Sequential:
    return cast(nn.Sequential, getattr(anchor, f"layer{stage + 1}"))
