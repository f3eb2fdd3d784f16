"""Image files as a network's input."""

from collections.abc import Sequence

import torch
from timm.data import create_transform
from torch import Tensor

from paperkit.data.pictures import read_picture


def read_images(paths: Sequence[str], size: int) -> Tensor:
    """Centre crops of `size` px out of 1 / 0.875 of it, normalised as in training: (B, 3, size, size).

    Raises:
        UserError: a file that cannot be read; it is named.
    """
    transform = create_transform(size, crop_pct=0.875, interpolation="bicubic")
    return torch.stack([torch.as_tensor(transform(read_picture(path))) for path in paths])
