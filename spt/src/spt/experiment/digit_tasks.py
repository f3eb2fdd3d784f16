"""The embedded tasks: scans of handwritten digits, half for pre-training, half for four tasks that need other features.

Shapes: N images of 1 x 8 x 8 pixels in [-1, 1].
"""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from paperkit.data.seeding import seed_of

SOURCE_IMAGES = 900
CLASSES = {"invert": 10, "flip": 10, "rotation": 4, "location": 9}
CELLS = [(row, column) for row in (0, 2, 4) for column in (0, 2, 4)]  # upper left corners of a 4 x 4 patch


class Task(NamedTuple):
    """Images (N, 1, 8, 8) float32 and labels (N,) int64 for tuning and for the result."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*parts))


def _scans() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images.reshape(-1, 1, 8, 8)).float() / 8 - 1, torch.from_numpy(labels).long()


def _halves(backbone_seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(1797, generator=_generator(17, backbone_seed))
    return order[:SOURCE_IMAGES], order[SOURCE_IMAGES:]


def source_digits(backbone_seed: int) -> tuple[Tensor, Tensor]:
    """The 900 scans that the backbone is pre-trained on."""
    images, labels = _scans()
    chosen, _ = _halves(backbone_seed)
    return images[chosen], labels[chosen]


def unseen_digits(backbone_seed: int) -> tuple[Tensor, Tensor]:
    """The 897 scans of the downstream pool, with the source's own labels."""
    images, labels = _scans()
    _, chosen = _halves(backbone_seed)
    return images[chosen], labels[chosen]


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by -1, 0 or 1 pixel in each direction, plus noise of std 0.15 (augmentation of
    pre-training)."""
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    moves = torch.randint(0, 3, (len(images), 2), generator=generator)
    rows = moves[:, 0, None] + torch.arange(8)
    columns = moves[:, 1, None] + torch.arange(8)
    moved = padded[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]
    return moved + 0.15 * torch.randn(moved.shape, generator=generator)


def make_task(name: str, seed: int, backbone_seed: int = 0, train_images: int = 250, val_images: int = 0) -> Task:
    """One downstream task, split anew by the seed; `test` is the rest of the pool, or held-out training images."""
    images, labels = unseen_digits(backbone_seed)
    draw = _generator(23, seed, list(CLASSES).index(name))
    images, labels = images.clone(), labels.clone()
    if name == "invert":
        images = -images + 0.3 * torch.randn(images.shape, generator=draw)
    elif name == "flip":
        images = images.transpose(2, 3).flip(3)
    elif name == "rotation":
        labels = torch.randint(0, 4, (len(images),), generator=draw)
        images = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(images, labels, strict=True)])
    else:
        labels = torch.randint(0, len(CELLS), (len(images),), generator=draw)
        small = F.avg_pool2d(images, 2)
        images = 0.5 * torch.randn(images.shape, generator=draw) - 0.5
        for image, patch, cell in zip(images, small, labels.tolist(), strict=True):
            row, column = CELLS[cell]
            image[:, row : row + 4, column : column + 4] = patch
    order = torch.randperm(len(images), generator=_generator(29, seed))
    train, test = order[:train_images], order[train_images:]
    if val_images:
        train, test = train[:-val_images], train[-val_images:]
    return Task((images[train], labels[train]), (images[test], labels[test]))
