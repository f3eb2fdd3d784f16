"""Classes of image files."""

from collections.abc import Sequence

import torch
from torch import Tensor

from focusformer.models.static_vit import StaticViT
from paperkit.data.pictures import read_picture
from paperkit.errors import UserError

CROP = 0.875
"""Share of the resized image's side that is kept: 224 px of 256."""


def read_images(paths: Sequence[str], model: StaticViT) -> Tensor:
    """Centre crops of the model's size, normalised as in ImageNet's evaluation: (B, 3, size, size).

    Raises:
        UserError: a model that takes no colour images, or a file that cannot be read; it is named.
    """
    from timm.data import create_transform

    if model.in_chans != 3:
        raise UserError(f"the model takes images of {model.in_chans} channels, and image files are read as 3")
    transform = create_transform(model.img_size, crop_pct=CROP, interpolation="bicubic")
    return torch.stack([torch.as_tensor(transform(read_picture(path))) for path in paths])


@torch.no_grad()
def likeliest(model: StaticViT, images: Tensor, top: int) -> list[list[tuple[int, float]]]:
    """(class, share) of each image, the likeliest first."""
    values, classes = model(images).softmax(-1).topk(min(top, model.num_classes))
    return [list(zip(c, v, strict=True)) for c, v in zip(classes.tolist(), values.tolist(), strict=True)]
