"""Pictures and label maps for mmsegmentation, read as they are; whatever cannot be is one line with its name.

mmsegmentation itself passes over images of another ending than `.jpg`, takes the red of a coloured label map for its
classes, keeps the low byte of larger numbers, and leaves a photograph's label map on its side.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from PIL import Image

from paperkit.data.layouts import ENDINGS, UNREADABLE
from paperkit.data.pictures import load_picture, read_picture
from paperkit.errors import UserError

EXACT = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm")
"""Endings of pictures that keep every number; JPEG's and WebP's do not."""
NOTHING = 255


def image_pairs(images: str, maps: str) -> list[tuple[str, str]]:
    """(image, label map) for each image beneath `images`, in the order of their paths; folders within count as names.

    Hidden files and folders, and files that are no pictures, are passed over.

    Raises:
        UserError: an image without a label map, or with several; two images of one name; a kind that is not read.
    """
    found = _by_name(images, {*ENDINGS, *UNREADABLE})
    known = _by_name(maps, ENDINGS)
    if not found:
        raise UserError(f"no image in {images}: what is read ends in {', '.join(sorted(ENDINGS))}")
    pairs = []
    for name, paths in found.items():
        if len(paths) > 1:
            raise UserError(f"{paths[0]} and {paths[1]} have one name, and so one annotation; rename one of them")
        if os.path.splitext(paths[0])[1].lower() in UNREADABLE:
            raise UserError(f"cannot read image {paths[0]}: its kind is not read; save it as JPEG or PNG")
        labels = known.get(name, [])
        exact = [path for path in labels if path.lower().endswith(EXACT)]
        if not labels:
            raise UserError(f"{paths[0]} has no annotation: {os.path.join(maps, name)}.png is missing")
        if len(exact) != 1:
            why = "several files of its name" if exact else f"{labels[0]}, whose kind changes numbers; save it as PNG"
            raise UserError(f"{paths[0]} has no sure annotation but {why}")
        pairs.append((paths[0], exact[0]))
    return sorted(pairs)


def _by_name(folder: str, endings: Sequence[str] | set[str] | frozenset[str]) -> dict[str, list[str]]:
    """Paths of the files beneath `folder` by their path in it without the ending."""
    found: dict[str, list[str]] = {}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for file in sorted(files):
            stem, ending = os.path.splitext(file)
            if not file.startswith(".") and ending.lower() in endings:
                name = os.path.relpath(os.path.join(place, stem), folder)
                found.setdefault(name, []).append(os.path.join(place, file))
    return found


def with_own_readers(pipeline: Sequence[Any]) -> list[Any]:
    """A pipeline whose plain reading steps are those below; a step with options beyond ours stays as it is."""
    ours = {"LoadImageFromFile": ("mmseg.PictureFromFile", {"type"}),
            "LoadAnnotations": ("mmseg.LabelsFromFile", {"type", "reduce_zero_label"})}  # fmt: skip
    steps = []
    for step in pipeline:
        name, options = ours.get(str(step.get("type")), ("", set())) if isinstance(step, dict) else ("", set())
        steps.append({**step, "type": name} if name and set(step) <= options else step)
    return steps


@TRANSFORMS.register_module()
class PictureFromFile(BaseTransform):
    """`img_path` -> `img` (H, W, 3), blue first, upright as a viewer shows it."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = np.ascontiguousarray(np.asarray(read_picture(results["img_path"]))[..., ::-1])
        return {**results, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


@TRANSFORMS.register_module()
class LabelsFromFile(BaseTransform):
    """`seg_map_path` -> `gt_seg_map` (H, W) of class numbers, 255 where there is nothing.

    Args:
        reduce_zero_label: whether 0 stands for nothing and 1 for the first class; None takes the data set's word.
    """

    def __init__(self, reduce_zero_label: bool | None = None) -> None:
        self.reduce_zero_label = reduce_zero_label

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path, reduced = results["seg_map_path"], bool(results["reduce_zero_label"])
        if self.reduce_zero_label not in (None, reduced):
            raise UserError(
                f"reduce_zero_label is {reduced} in the data set and {self.reduce_zero_label} in its pipeline's "
                "LoadAnnotations; give both the same"
            )
        labels = numbers_of(load_picture(path), path)
        if labels.shape != results.get("ori_shape", labels.shape):
            (height, width), (rows, columns) = results["ori_shape"], labels.shape
            raise UserError(
                f"annotation {path} has {columns} x {rows} pixels, and its image {results['img_path']} has {width} x "
                f"{height}"
            )
        classes, first = results["classes"], int(reduced)
        wrong = labels[(labels != NOTHING) & (labels >= classes + first)]
        if wrong.size:
            nothing = "0 and 255 for nothing" if reduced else "255 for nothing"
            raise UserError(
                f"annotation {path} holds the number {wrong.max()}; the {classes} classes are {first} to "
                f"{classes + first - 1}, {nothing}"
            )
        labels = labels.astype(np.uint8)
        if reduced:
            labels = np.where((labels == 0) | (labels == NOTHING), NOTHING, labels - 1).astype(np.uint8)
        if results.get("label_map") is not None:
            table = np.arange(256, dtype=np.uint8)
            for old, new in results["label_map"].items():
                table[old] = new
            labels = table[labels]
        return {**results, "gt_seg_map": labels, "seg_fields": [*results["seg_fields"], "gt_seg_map"]}


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
        return colours[..., 0]
    if image.mode == "F" or pixels.ndim != 2:
        raise UserError(f"annotation {path} has pixels of mode {image.mode}; a label map has whole numbers")
    numbers = pixels.astype(np.int64)
    if numbers.min(initial=0) < 0:
        raise UserError(f"annotation {path} holds the number {numbers.min()}; classes begin at 0")
    return numbers
