"""Label maps of semantic segmentation: pictures whose numbers are classes, and the images that they belong to.

They are read as they are; whatever cannot be is one line with its name. Common readers pass over images of another
ending, take the red of a coloured label map for its classes, and keep the low byte of larger numbers.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from paperkit.data.layouts import ENDINGS, UNREADABLE
from paperkit.data.pictures import load_picture
from paperkit.errors import UserError

EXACT = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm")
"""Endings of pictures that keep every number; JPEG's and WebP's do not."""
NOTHING = 255
LISTED = 100


def image_pairs(
    images: str, maps: str, image_tail: str = "", map_tail: str = "", both: bool = False
) -> list[tuple[str, str]]:
    """(image, label map) for each image beneath `images`, in the order of their paths; folders within count as names.

    Hidden files and folders, and files that are no pictures, are passed over.

    Args:
        images, maps: folders.
        image_tail, map_tail: what a name has before its ending and its partner's has not; files without it are passed
            over. Cityscapes: `_leftImg8bit` and `_gtFine_labelTrainIds`.
        both: a label map without an image is wrong too.

    Raises:
        UserError: every image without a label map, or with several; two images of one name; a kind that is not read.
    """
    found = _by_name(images, {*ENDINGS, *UNREADABLE}, image_tail)
    known = _by_name(maps, ENDINGS, map_tail)
    if not found:
        raise UserError(f"no image in {images}: what is read ends in {', '.join(sorted(ENDINGS))}")
    pairs, wrong = [], []
    for name, paths in found.items():
        labels = known.get(name, [])
        exact = [path for path in labels if path.lower().endswith(EXACT)]
        if len(paths) > 1:
            wrong.append(f"{paths[0]} and {paths[1]} have one name, and so one annotation; rename one of them")
        elif os.path.splitext(paths[0])[1].lower() in UNREADABLE:
            wrong.append(f"cannot read image {paths[0]}: its kind is not read; save it as JPEG or PNG")
        elif not labels:
            wrong.append(f"{paths[0]} has no annotation: {os.path.join(maps, name)}{map_tail}.png is missing")
        elif len(exact) != 1:
            why = "several files of its name" if exact else f"{labels[0]}, whose kind changes numbers; save it as PNG"
            wrong.append(f"{paths[0]} has no sure annotation but {why}")
        else:
            pairs.append((paths[0], exact[0]))
    if both:
        wrong += [f"annotation {known[name][0]} has no image in {images}" for name in known if name not in found]
    if wrong:
        more = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise UserError("; ".join(wrong[:LISTED]) + more)
    return sorted(pairs)


def _by_name(folder: str, endings: Collection[str], tail: str) -> dict[str, list[str]]:
    """Paths of the files beneath `folder` by their path in it without tail and ending."""
    found: dict[str, list[str]] = {}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for file in sorted(files):
            stem, ending = os.path.splitext(file)
            if not file.startswith(".") and ending.lower() in endings and stem.endswith(tail):
                name = os.path.relpath(os.path.join(place, stem.removesuffix(tail)), folder)
                found.setdefault(name, []).append(os.path.join(place, file))
    return found


def read_labels(
    path: str,
    classes: int,
    *,
    reduced: bool = False,
    void: Sequence[int] = (),
    image: tuple[str, tuple[int, int]] | None = None,
) -> np.ndarray:
    """(H, W) class numbers from 0, as bytes; 255 where there is nothing.

    Args:
        path: label map.
        classes: how many there are.
        reduced: in the file 0 stands for nothing and 1 for the first class.
        void: further numbers that stand for nothing.
        image: path of its image, and the (height, width) that both must have.

    Raises:
        UserError: no label map, another size than its image's, or a number that is no class.
    """
    labels = numbers_of(load_picture(path), path)
    if image is not None and labels.shape != image[1]:
        (height, width), (rows, columns) = image[1], labels.shape
        raise UserError(
            f"annotation {path} has {columns} x {rows} pixels, and its image {image[0]} has {width} x {height}"
        )
    first, nothing = int(reduced), sorted({*([0] if reduced else []), *void, NOTHING})
    empty = np.isin(labels, nothing)
    wrong = labels[~empty & (labels >= classes + first)]
    if wrong.size:
        raise UserError(
            f"annotation {path} holds the number {wrong.max()}; the {classes} classes are {first} to "
            f"{classes + first - 1}, {' and '.join(map(str, nothing))} for nothing"
        )
    return np.where(empty, NOTHING, labels - first).astype(np.uint8)


def numbers_of(image: Image.Image, path: str) -> np.ndarray:
    """(H, W) whole numbers of a label map; grey that was saved as colours is grey.

    Raises:
        UserError: colours, or pixels that are no whole numbers.
    """
    pixels = np.asarray(image)
    if image.mode in ("RGB", "RGBA", "LA"):
        colours = pixels[..., : 1 if image.mode == "LA" else 3]
        if (colours != colours[..., :1]).any():
            raise UserError(
                f"annotation {path} is a picture in colour ({image.mode}); a label map has one channel, whose numbers "
                "are the classes"
            )
        return colours[..., 0].astype(np.int64)
    if image.mode == "F" or pixels.ndim != 2:
        raise UserError(f"annotation {path} has pixels of mode {image.mode}; a label map has whole numbers")
    numbers = pixels.astype(np.int64)
    if numbers.min(initial=0) < 0:
        raise UserError(f"annotation {path} holds the number {numbers.min()}; classes begin at 0")
    return numbers


def class_names(path: str | Path) -> tuple[str, ...]:
    """One class a line, in the order of their numbers; empty lines at the end do not count.

    Raises:
        UserError: no such file, no text, no class, an empty line between classes, or a class named twice.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").rstrip().splitlines()]
    except OSError as error:
        raise UserError(f"cannot read the class names {path}: {error.strerror}; give one class a line") from None
    except ValueError:
        raise UserError(f"the class names {path} are no UTF-8 text; give one class a line") from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or "" in names or twice:
        why = "an empty line" if "" in names else f"{twice[0]!r} twice" if twice else "no class"
        raise UserError(f"the class names {path} hold {why}; give one class a line")
    return tuple(names)
