"""How anchors of each family are taken apart: one file a family, all behind the interface of `families.family`."""

from torch import nn

from paperkit.errors import UserError
from snnet.method.families.family import Family
from snnet.method.families.levit import LeViT
from snnet.method.families.plain_vit import PlainViT
from snnet.method.families.resnet import ResNetFamily
from snnet.method.families.swin import Swin

FAMILIES: tuple[Family, ...] = (PlainViT(), Swin(), LeViT(), ResNetFamily())


def family_of(anchor: nn.Module) -> Family:
    """The family of a timm model.

    Raises:
        UserError: if no family takes models of this class.
    """
    for family in FAMILIES:
        if family.takes(anchor):
            return family
    raise UserError(
        f"no family of anchors takes a {type(anchor).__name__}; known are timm's VisionTransformer, SwinTransformer, "
        "Levit and LevitDistilled (linear, not conv) and ResNet"
    )
