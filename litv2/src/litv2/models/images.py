"""Image files as the network's input."""

from collections.abc import Sequence

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from paperkit.errors import UserError


def read_images(paths: Sequence[str], size: int) -> Tensor:
    """Centre crops of `size` px, normalised as in training: (B, 3, size, size).

    Raises:
        UserError: a file that cannot be read; it is named.
    """
    transform = create_transform(size, crop_pct=0.875, interpolation="bicubic")
    images = []
    for path in paths:
        try:
            images.append(torch.as_tensor(transform(Image.open(path).convert("RGB"))))
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read image {path}: {error}") from error
    return torch.stack(images)
