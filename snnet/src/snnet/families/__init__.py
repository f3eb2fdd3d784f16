"""How anchors of each family are taken apart: one file a family, all behind the interface of `families.family`."""

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from paperkit.errors import UserError
from snnet.families.family import Family
from snnet.families.plain_vit import PlainViT

FAMILIES: dict[type[nn.Module], Family] = {VisionTransformer: PlainViT()}


def family_of(anchor: nn.Module) -> Family:
    """The family of a timm model.

    Raises:
        UserError: if no family takes models of this class.
    """
    for model_class, family in FAMILIES.items():
        if type(anchor) is model_class:
            return family
    known = ", ".join(model_class.__name__ for model_class in FAMILIES)
    raise UserError(f"no family of anchors takes a {type(anchor).__name__}; known are timm's {known}")
