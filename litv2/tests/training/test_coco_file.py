"""COCO as tools export it: what the format leaves out is filled in, the rest is one line with file and annotation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made import LITV2, write_detection
from PIL import Image
from pycocotools import mask as masks_of

from paperkit.data.coco import CocoImages, as_results, average_precision
from paperkit.errors import UserError
from paperkit.testing.made_images import make_coco

Change = Callable[[dict[str, Any]], Any]


def each(key: str, **changes: Any) -> Change:
    """Sets keys of every entry (a function gets the entry's number), or takes them away (None)."""

    def change(content: dict[str, Any]) -> None:
        for number, entry in enumerate(content[key]):
            for name, value in changes.items():
                entry.pop(name, None)
                if value is not None:
                    entry[name] = value(number) if callable(value) else value

    return change


def rewrite(root: Path, change: Change, split: str = "val2017") -> Path:
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


def perfect(images: CocoImages) -> tuple[float, float]:
    """(box AP, mask AP) of detections that are the annotations themselves; the mask's 0 where there are none."""
    boxes, segments = [], []
    for i in range(len(images)):
        target = images[i][1]
        output = dict(boxes=target["boxes"], labels=target["labels"], scores=torch.ones(len(target["labels"])))
        if images.masks:
            output["masks"] = target["masks"][:, None].float()
        found = as_results(output, int(target["image_id"]), images, 1)
        boxes, segments = boxes + found[0], segments + found[1]
    return average_precision(images, boxes)["AP"], average_precision(images, segments, "segm")["AP"]


def run_length(number: int) -> dict[str, Any]:
    """The box of image `number` as an uncompressed run-length mask: columns of 80 pixels."""
    left, top, width, height = 10 + 5 * number, 20, 30, 25
    counts = [80 * left + top]
    for _ in range(width - 1):
        counts += [height, 80 - height]
    counts += [height]
    return {"size": [80, 100], "counts": [*counts, 80 * 100 - sum(counts)]}


def packed(number: int) -> dict[str, Any]:
    found = masks_of.frPyObjects(run_length(number), 80, 100)
    return {**found, "counts": found["counts"].decode()}


def both(*changes: Change) -> Change:
    return lambda content: [change(content) for change in changes]


GOOD: dict[str, Change] = {
    "ids from 0": each("annotations", id=lambda i: i),
    "all ids 0": each("annotations", id=0),
    "no ids": each("annotations", id=None),
    "ids that are names": both(each("images", id=lambda i: f"p{i}"), each("annotations", image_id=lambda i: f"p{i}")),
    "image ids from 0": both(each("images", id=lambda i: i), each("annotations", image_id=lambda i: i)),
    "no iscrowd and no area": each("annotations", iscrowd=None, area=None),
    "no sizes": each("images", width=None, height=None),
    "sizes of 0": each("images", width=0, height=0),
    "no box": each("annotations", bbox=None),
    "a flat polygon": lambda content: [a.update(segmentation=a["segmentation"][0]) for a in content["annotations"]],
    "run lengths": each("annotations", segmentation=run_length),
    "packed run lengths": each("annotations", segmentation=packed, area=None),
    "a folder in the name": each("images", file_name=lambda i: f"C:\\data\\{i}.jpg"),
    "categories 0 and 90": both(
        each("categories", id=lambda i: 90 * i), each("annotations", category_id=lambda i: 90 * (i % 2))
    ),
    "a box over the edge": each("annotations", bbox=[70.5, 20, 40, 25], segmentation=[[70, 20, 120, 20, 120, 45]]),
    "a box without extent": lambda content: content["annotations"].append(
        dict(id=9, image_id=1, category_id=17, bbox=[5, 5, 0, 10], segmentation=[[5, 5, 5, 15, 5, 5]])
    ),
    "an image without objects": lambda content: content["images"].append(dict(id=77, file_name="0.jpg")),
    "a byte order mark": lambda content: None,
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_perfect_detections_are_perfect(name: str, tmp_path: Path) -> None:
    """An annotation of id 0 counted as no match before: AP 62.6 for the detections that are the annotations."""
    file = rewrite(make_coco(tmp_path), GOOD[name])
    if name == "a byte order mark":
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    images = CocoImages(tmp_path, "val2017")
    assert images.names == ["cat", "dog"] and len(images) == (5 if "without objects" in name else 4)
    assert perfect(images) == pytest.approx((100, 100))
    if name == "a box over the edge":
        assert images[0][1]["boxes"].tolist() == [[70.5, 20, 100, 45]]


def test_area_and_box_come_from_the_polygon(tmp_path: Path) -> None:
    triangle = [[10, 20, 40, 20, 10, 40]]
    rewrite(make_coco(tmp_path), each("annotations", segmentation=triangle, area=None, bbox=None))
    entry = CocoImages(tmp_path, "val2017").coco.dataset["annotations"][0]
    assert entry["bbox"] == [10, 20, 30, 20] and entry["area"] == pytest.approx(300, rel=0.05)
    rewrite(tmp_path, each("annotations", segmentation=None, bbox=[1, 2, 30, 20]))
    assert CocoImages(tmp_path, "val2017", masks=False).coco.dataset["annotations"][0]["area"] == 600


def test_boxes_alone_train_retinanet(tmp_path: Path) -> None:
    rewrite(make_coco(tmp_path), each("annotations", segmentation=None))
    images = CocoImages(tmp_path, "val2017", masks=False)
    assert perfect(images)[0] == pytest.approx(100) and "masks" not in images[0][1]


BAD: dict[str, tuple[Change, str]] = {
    "unknown image": (each("annotations", image_id=99), "annotation 1 (id 1) has image_id 99, which the file does not"),
    "text for a number": (each("annotations", image_id="1"), "annotation 1 (id 1) has image_id 1, which the file"),
    "unknown category": (each("annotations", category_id=5), "annotation 1 (id 1) has category_id 5, which the file"),
    "no category": (each("annotations", category_id=None), "annotation 1 (id 1) has category_id None"),
    "two images of one id": (each("images", id=1), "image 2 has the id 1 of image 1"),
    "two categories of one id": (each("categories", id=17), "category 2 has the id 17 of category 1"),
    "two categories of one name": (each("categories", name="cat"), "the categories 17 and 18 are both called cat"),
    "an image without a name": (each("images", file_name=None), "image 1 has no file_name"),
    "a lost picture": (each("images", file_name="lost.jpg"), "image 1: no image at"),
    "other sizes": (each("images", width=80, height=100), "image 1 is said to have 80 x 100 pixels, but"),
    "three numbers": (each("annotations", bbox=[1, 2, 3]), "annotation 1 (id 1) has the bbox [1, 2, 3]; it is [left"),
    "not a number": (each("annotations", bbox=[1, 2, 3, float("nan")]), "annotation 1 (id 1) has the bbox"),
    "a negative size": (each("annotations", bbox=[50, 50, -10, 5]), "whose size is negative"),
    "outside": (each("annotations", bbox=[150, 10, 20, 20]), "(id 1) has the bbox [150, 10, 20, 20], outside its"),
    "neither box nor mask": (each("annotations", bbox=None, segmentation=[]), "(id 1) has no polygon or mask"),
    "a crowd of 3": (each("annotations", iscrowd=3), "annotation 1 (id 1) has iscrowd 3"),
    "area in words": (each("annotations", area="big"), "annotation 1 (id 1) has the area big"),
    "an odd polygon": (each("annotations", segmentation=[[1, 2, 3, 4, 5]]), "holds something that is no polygon"),
    "a mask of another size": (each("annotations", segmentation={"size": [9, 9], "counts": [81]}), "is of size [9, 9]"),
    "a mask that is short": (each("annotations", segmentation={"size": [80, 100], "counts": [5]}), "do not add up"),
    "annotations that are none": (lambda c: c.update(annotations=[3]), "annotation 1 is a int, not a mapping"),
    "no list": (lambda c: c.pop("annotations"), "it has no list `annotations`"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_one_line(name: str, tmp_path: Path) -> None:
    change, message = BAD[name]
    file = rewrite(make_coco(tmp_path), change)
    with pytest.raises(UserError) as caught:
        CocoImages(tmp_path, "val2017")
    assert str(file) in str(caught.value) and message in str(caught.value)


def test_a_pointer_is_called_one(tmp_path: Path) -> None:
    file = rewrite(make_coco(tmp_path), lambda content: None)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        CocoImages(tmp_path, "val2017")


def turn(path: Path, orientation: int) -> None:
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)


def test_a_turned_picture_is_upright(tmp_path: Path) -> None:
    """Annotated as it is shown (80 wide, 100 high) the box lies on the bright part; as stored it is refused."""
    make_coco(tmp_path)
    turn(tmp_path / "val2017" / "0.jpg", 6)
    with pytest.raises(UserError, match=r"said to have 100 x 80 pixels, but .*0\.jpg has 80 x 100; a viewer turns it"):
        CocoImages(tmp_path, "val2017")

    def upright(content: dict[str, Any]) -> None:
        """A quarter to the right: what was at (x, y) is at (80 - y, x)."""
        content["images"][0].update(width=80, height=100)
        corners = [35, 10, 60, 10, 60, 40, 35, 40]
        content["annotations"][0].update(bbox=[35, 10, 25, 30], segmentation=[corners])

    rewrite(tmp_path, upright)
    image, target = CocoImages(tmp_path, "val2017")[0]
    assert image.shape == (3, 100, 80) == (3, *target["masks"].shape[1:])
    left, top, right, bottom = target["boxes"][0].int().tolist()
    assert image[0, top + 1 : bottom - 1, left + 1 : right - 1].min() > 0.7
    turn(tmp_path / "val2017" / "1.jpg", 3)  # upside down, of the same size
    assert CocoImages(tmp_path, "val2017")[1][0][1, 40:50, 60:70].min() > 0.7


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_refused_before_there_is_a_run(split: str, tmp_path: Path) -> None:
    config = write_detection(tmp_path)
    rewrite(tmp_path / "coco", each("annotations", category_id=3), split)
    line = LITV2.refused("train", "--config", config, cwd=tmp_path)
    assert f"instances_{split}.json: annotation 1 (id 1) has category_id 3" in line
    rewrite(tmp_path / "coco", each("annotations", category_id=17, segmentation=None), split)
    words = ["--detection.detector", "mask_rcnn"]
    line = LITV2.refused("train", "--config", config, *words, cwd=tmp_path)
    assert "has no polygon or mask, which Mask R-CNN learns; a detector of boxes alone needs none" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named(workers: int, tmp_path: Path) -> None:
    config = write_detection(tmp_path, epochs=1)
    picture = tmp_path / "coco" / "train2017" / "1.jpg"
    picture.write_bytes(picture.read_bytes()[:900])  # its head is whole
    line = LITV2.child("train", "--config", config, "--data.num_workers", str(workers), cwd=tmp_path, code=1).line
    assert "cannot read image" in line and "train2017/1.jpg" in line and len(line) < 300
