"""COCO's annotation file as tools export it, made whole: what the format lets out is filled in, the rest is one line.

Numbers that only tie entries together (ids of images, annotations and categories) are given anew, from 1 on: COCO's own
evaluation takes an annotation of id 0 for no match at all, and one of two with the same id for the other.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image
from pycocotools import mask as masks_of

from paperkit.data.pictures import FORMATS, read_picture
from paperkit.errors import UserError
from paperkit.files.bounded import regular_file

EXIF_ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
READERS = 16  # threads that wait for pictures' first bytes


def read_annotations(path: Path, folder: Path, masks: bool) -> dict[str, list[dict[str, Any]]]:
    """The file's `images`, `annotations` and `categories`, every entry with all that training and evaluation ask for.

    Filled in: `iscrowd` (0), `area` (of the mask, else of the box), `bbox` (around the polygons), the picture's size,
    a category's name (its id). Boxes are cut at the picture's edges; those without any extent are left out.

    Args:
        path: the JSON file.
        folder: of the pictures, whose sizes are looked at.
        masks: every annotation must have polygons or a mask.

    Raises:
        UserError: with the file, the entry and what is wrong with it.
    """
    content = _read(path)
    categories = _categories(path, content["categories"])
    images = _images(path, content["images"], folder)
    annotations: list[dict[str, Any]] = []
    for number, entry in enumerate(content["annotations"], 1):
        where = f"{path}: annotation {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is a {type(entry).__name__}, not a mapping")
        if "id" in entry:
            where += f" (id {str(entry['id'])[:40]})"
        image = images[_known(where, entry, "image_id", images)]
        category = categories[_known(where, entry, "category_id", categories)]
        made = _annotation(where, entry, image["width"], image["height"], masks)
        if made is not None:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category["id"], **made}
            )
    return {"images": [*images.values()], "annotations": annotations, "categories": [*categories.values()]}


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(regular_file(path, "COCO file").read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no COCO file: {type(error).__name__} {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path} is damaged or no COCO file: it has no list `{key}`")
    return content


def _by_id(path: Path, entries: Sequence[Any], what: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(id, entry) of entries that others name by it."""
    seen: dict[Any, int] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise UserError(f"{path}: {what} {number} has no id, a whole number or a name")
        if entry["id"] in seen:
            raise UserError(f"{path}: {what} {number} has the id {entry['id']} of {what} {seen[entry['id']]}")
        seen[entry["id"]] = number
        yield entry["id"], entry


def _known(where: str, entry: Mapping[str, Any], key: str, known: Mapping[Any, Any]) -> Any:
    value = entry.get(key)
    if not isinstance(value, int | str) or value not in known:
        raise UserError(f"{where} has {key} {str(value)[:40]}, which the file does not list")
    return value


def _categories(path: Path, entries: Sequence[Any]) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    names: dict[str, Any] = {}
    for key, entry in _by_id(path, entries, "category"):
        name = str(entry.get("name", key))
        if name in names:
            raise UserError(
                f"{path}: the categories {names[name]} and {key} are both called {name}; they need two names"
            )
        names[name] = key
        found[key] = {"id": len(found) + 1, "name": name}
    return found


def _images(path: Path, entries: Sequence[Any], folder: Path) -> dict[Any, dict[str, Any]]:
    """By their ids in the file, in the order of these; with `path`, where the picture lies."""
    listed = sorted(_by_id(path, entries, "image"), key=lambda pair: (isinstance(pair[0], str), pair[0]))
    places = []
    for key, entry in listed:
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: image {key} has no file_name")
        place = folder / name
        if not place.is_file() and (folder / PureWindowsPath(name).name).is_file():
            place = folder / PureWindowsPath(name).name  # tools keep the folder that the picture lay in
        places.append(place)
    with ThreadPoolExecutor(READERS) as pool:
        sizes = [*pool.map(_size, places)]
    found: dict[Any, dict[str, Any]] = {}
    for (key, entry), place, size in zip(listed, places, sizes, strict=True):
        if isinstance(size, UserError):
            raise UserError(f"{path}: image {key}: {size}")
        width, height = size
        told = entry.get("width") or width, entry.get("height") or height
        if told != size:
            turned = "; a viewer turns it by its EXIF note" if told == size[::-1] else ""
            raise UserError(
                f"{path}: image {key} is said to have {told[0]} x {told[1]} pixels, but {place} has {width} x {height}"
                f"{turned}: annotate the picture as it is shown"
            )
        found[key] = {"id": len(found) + 1, "file_name": str(place), "width": width, "height": height}
    return found


def _size(place: Path) -> tuple[int, int] | UserError:
    """(width, height) of a picture as a viewer shows it, by its first bytes; or what is wrong with it."""
    try:
        with Image.open(place, formats=FORMATS) as image:
            turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
            return image.size[::-1] if turned else image.size
    except Exception:  # the reader says what it is
        try:
            return read_picture(place).size
        except UserError as error:
            return error


def _annotation(where: str, entry: Mapping[str, Any], width: int, height: int, masks: bool) -> dict[str, Any] | None:
    """What training and evaluation read of one annotation; None for a box without extent."""
    crowd = entry.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise UserError(f"{where} has iscrowd {str(crowd)[:40]}; it is 0 or 1")
    try:
        shape = _shape(entry.get("segmentation"), width, height)
    except ValueError as error:
        if masks:
            raise UserError(f"{where} has a segmentation that {error}") from None
        shape = None
    if masks and shape is None:
        raise UserError(
            f"{where} has no polygon or mask, which Mask R-CNN learns; a detector of boxes alone needs none"
        )
    encoded = None if shape is None else _encoded(shape, width, height)
    box = entry.get("bbox")
    if not box and encoded is not None:
        box = _around(shape) if isinstance(shape, list) else masks_of.toBbox(encoded).tolist()
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise UserError(f"{where} has the bbox {str(box)[:60]}; it is [left, top, width, height]")
    if box[2] < 0 or box[3] < 0:
        raise UserError(f"{where} has the bbox {box}, whose size is negative; it is [left, top, width, height]")
    if box[2] == 0 or box[3] == 0:
        return None
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[0] + box[2], width), min(box[1] + box[3], height)
    if right <= left or bottom <= top:
        raise UserError(f"{where} has the bbox {box}, outside its picture of {width} x {height} pixels")
    inside = box[0] >= 0 and box[1] >= 0 and box[0] + box[2] <= width and box[1] + box[3] <= height
    box = box if inside else [left, top, right - left, bottom - top]
    area = entry.get("area")
    if area is None:
        area = box[2] * box[3] if encoded is None else float(masks_of.area(encoded))
    if not _is_number(area) or area < 0:
        raise UserError(f"{where} has the area {str(area)[:40]}; it is a number of pixels")
    made = {"bbox": box, "area": area, "iscrowd": int(crowd)}
    return {**made, "segmentation": shape} if masks else made


def _shape(value: Any, width: int, height: int) -> Any:
    """Polygons or a run-length mask in COCO's form; None if there is none.

    Raises:
        ValueError: what is wrong with it.
    """
    if not value:
        return None
    if isinstance(value, dict):
        counts = value.get("counts")
        if value.get("size") != [height, width]:
            raise ValueError(f"is of size {str(value.get('size'))[:40]}, and the picture has [{height}, {width}]")
        if isinstance(counts, list):
            if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != width * height:
                raise ValueError("has counts that do not add up to the picture's pixels")
        elif not isinstance(counts, str):
            raise ValueError("has no counts")
        return value
    if not isinstance(value, list):
        raise ValueError(f"is a {type(value).__name__}, not a list of polygons")
    polygons = [value] if all(map(_is_number, value)) else value
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_is_number, polygon)):
            raise ValueError("holds something that is no polygon [x, y, x, y, x, y, ...]")
    return [polygon for polygon in polygons if len(polygon) >= 6] or None


def _encoded(shape: Any, width: int, height: int) -> Any:
    if isinstance(shape, dict):
        return masks_of.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
    return masks_of.merge(masks_of.frPyObjects(shape, height, width))


def _around(polygons: Sequence[Sequence[float]]) -> list[float]:
    xs, ys = ([n for polygon in polygons for n in polygon[start::2]] for start in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
