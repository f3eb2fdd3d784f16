"""Scenes of real digits: small pictures with one label a pixel, made from scikit-learn's scans.

Shapes: N scenes, S side of the canvas in pixels.
"""

from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from paperkit.data.seeding import seed_of

CLASSES = (0, 1, 4, 7)
SIDE = 32
INK = 0.4
"""Pixels of a scan above it belong to the digit."""
NOTHING = 255
"""Label of the pixels that belong to no digit."""
SPLITS = {"train": (0, 1000), "val": (1000, 1200), "test": (1200, 1797)}
"""Scans that each split's scenes are made of; settings are chosen on `val`."""

Scenes = tuple[Tensor, Tensor]
"""Images (N, 1, S, S) float32 and labels (N, S, S) int64: index into `CLASSES`, or `NOTHING`."""


def make_scenes(split: str, count: int, sizes: Sequence[int] = (9, 14), seed: int = 0) -> Scenes:
    """`count` scenes of a split: one to three digits of `CLASSES` at random places, with noise of deviation 0.15.

    Args:
        sizes: smallest and largest side of a digit in pixels.
        seed: of the scenes. It is no seed of a run: all runs see and are measured on the same scenes.
    """
    scans, digits = load_digits(return_X_y=True)
    first, last = SPLITS[split]
    images = torch.from_numpy(scans[first:last].reshape(-1, 1, 8, 8)).float() / 16
    chosen = [(i, CLASSES.index(digit)) for i, digit in enumerate(digits[first:last]) if digit in CLASSES]
    generator = torch.Generator().manual_seed(seed_of(seed, first))

    def draw(low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=generator))

    canvas = torch.zeros(count, 1, SIDE, SIDE)
    labels = torch.full((count, SIDE, SIDE), NOTHING)
    for scene in range(count):
        for _ in range(draw(1, 3)):
            scan, label = chosen[draw(0, len(chosen) - 1)]
            size = draw(*sizes)
            top, left = draw(0, SIDE - size), draw(0, SIDE - size)
            brightness = 0.5 + 0.5 * float(torch.rand((), generator=generator))
            pixels = F.interpolate(images[scan][None], size=size, mode="bilinear")[0, 0]
            ink, place = pixels > INK, (scene, slice(top, top + size), slice(left, left + size))
            labels[place][ink] = label
            canvas[:, 0][place][ink] = (brightness * pixels)[ink]
    return canvas + 0.15 * torch.randn(canvas.shape, generator=generator), labels
