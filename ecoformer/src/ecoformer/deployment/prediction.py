"""Classes of image files."""

from collections.abc import Sequence

import torch
from torch import Tensor

from paperkit.data.pictures import read_picture


def read_images(paths: Sequence[str], size: int) -> Tensor:
    """Centre crops of `size` px out of 1 / 0.875 of it, normalised as in training: (B, 3, size, size).

    Raises:
        UserError: a file that cannot be read; it is named.
    """
    from timm.data import create_transform

    transform = create_transform(size, crop_pct=0.875, interpolation="bicubic")
    return torch.stack([torch.as_tensor(transform(read_picture(path))) for path in paths])


@torch.no_grad()
def top_classes(model: torch.nn.Module, images: Tensor, top: int) -> list[list[tuple[int, float]]]:
    """(class, share) of each image, the likeliest first."""
    shares = model(images).softmax(-1)
    values, classes = shares.topk(min(top, shares.shape[-1]))
    return [list(zip(c, v, strict=True)) for c, v in zip(classes.tolist(), values.tolist(), strict=True)]
