"""How anchors of each family are taken apart: one file a family, all behind the interface of `families.family`."""

from torch import nn

from paperkit.errors import UserError
from snnet.families.family import Family
from snnet.families.levit import LeViT
from snnet.families.plain_vit import PlainViT
from snnet.families.resnet import ResNetFamily
from snnet.families.swin import Swin

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
