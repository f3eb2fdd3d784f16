"""Picture files to label maps and overlays, by the test pipeline of the recipes."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from faseg.models.faseg import FASeg
from faseg.training.shortest_edge import resized_shape
from paperkit.data.pictures import read_picture

OPACITY, NAMED_FROM = 0.55, 0.01
"""Of the colours over the picture; the least share of a picture whose class is written on it."""
KNOWN = {150: "ade20k", 19: "cityscapes"}
"""Number of classes of the released networks, whose files hold no names, and mmsegmentation's name for the data."""


def segment_file(model: FASeg, path: str | Path) -> tuple[Image.Image, np.ndarray]:
    """The picture of a file, upright in RGB, and its label map (H, W) of class numbers.

    The shorter side is brought to the network's `shortest`, by Pillow as in training; scores are resized back.

    Raises:
        UserError: no file, or no picture.
    """
    picture = read_picture(path)
    width, height = picture.size
    rows, columns = resized_shape(height, width, model.shortest, model.longest)
    pixels = np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR))
    scores = model.segment([torch.from_numpy(pixels.copy()).permute(2, 0, 1)], [(height, width)])[0]
    return picture, scores.argmax(0).cpu().numpy()


def names_of(model: FASeg) -> list[str]:
    """Names of the classes: the network's own, those of the data set it was released for, or numbers."""
    if model.class_names is not None:
        return list(model.class_names)
    if model.num_classes in KNOWN:
        from mmseg.utils import get_classes

        return list(get_classes(KNOWN[model.num_classes]))
    return [f"class {i}" for i in range(model.num_classes)]


def colour(index: int) -> tuple[int, int, int]:
    """RGB of a class: hues a golden ratio apart, so that neighbouring numbers look different."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.55 + 0.4 * (index % 3) / 2, 1 - 0.3 * (index % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def shares(labels: np.ndarray, names: Sequence[str]) -> dict[int, float]:
    """Share of the picture by class number, the largest first."""
    counts = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    return {int(i): float(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]}


def overlay(picture: Image.Image, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """The picture under the colours of its classes, the name of each large one in its middle."""
    palette = np.array([colour(i) for i in range(len(names))], np.uint8)
    mixed = Image.blend(picture, Image.fromarray(palette[labels]), OPACITY)
    draw = ImageDraw.Draw(mixed)
    for index, share in shares(labels, names).items():
        if share >= NAMED_FROM:
            draw.text(_middle(labels == index), names[index], fill="white", stroke_fill="black", stroke_width=2,
                      anchor="mm")  # fmt: skip
    return mixed


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a mask that is nearest to its median; it lies inside whatever the shape."""
    rows, columns = mask.nonzero()
    nearest = ((rows - np.median(rows)) ** 2 + (columns - np.median(columns)) ** 2).argmin()
    return int(columns[nearest]), int(rows[nearest])
