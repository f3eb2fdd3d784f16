"""Label maps without any library of segmentation; through a data set they are tested where one is installed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paperkit.data.label_maps import LISTED, class_names, image_pairs, read_labels
from paperkit.errors import UserError


def write(path: Path, numbers: list[list[int]], mode: str = "L") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(numbers, np.uint8)).convert(mode).save(path)
    return str(path)


def test_numbers_are_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", [[0, 1, 2], [3, 11, 255]])
    assert read_labels(path, 4, void=(11,)).tolist() == [[0, 1, 2], [3, 255, 255]]
    assert read_labels(path, 11, reduced=True).tolist() == [[255, 0, 1], [2, 10, 255]]
    assert read_labels(path, 12).dtype == np.uint8
    with pytest.raises(UserError, match=r"a\.png holds the number 11; the 4 classes are 0 to 3, 255 for nothing"):
        read_labels(path, 4)
    with pytest.raises(UserError, match="the 2 classes are 1 to 2, 0 and 11 and 255 for nothing"):
        read_labels(path, 2, reduced=True, void=(11,))
    with pytest.raises(UserError, match=r"a\.png has 3 x 2 pixels, and its image b\.jpg has 3 x 4"):
        read_labels(path, 12, image=("b.jpg", (4, 3)))


def test_a_palette_is_only_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.putpixel((1, 0), 3)
    image.save(tmp_path / "a.png")
    assert read_labels(str(tmp_path / "a.png"), 4).tolist() == [[0, 3]]
    colours = Image.new("RGB", (2, 1), (1, 2, 3))
    colours.save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png is a picture in colour \(RGB\)"):
        read_labels(str(tmp_path / "b.png"), 4)


def test_partners_by_the_tails_of_their_names(tmp_path: Path) -> None:
    """Cityscapes: a folder a city, and further files of the same picture."""
    for name in ("bonn/b_1", "aachen/a_0"):
        write(tmp_path / "left" / f"{name}_leftImg8bit.png", [[0]], "RGB")
        for kind in ("labelTrainIds", "color", "instanceIds"):
            write(tmp_path / "fine" / f"{name}_gtFine_{kind}.png", [[0]])
    write(tmp_path / "left" / "bonn" / "notes.png", [[0]])
    found = image_pairs(str(tmp_path / "left"), str(tmp_path / "fine"), "_leftImg8bit", "_gtFine_labelTrainIds", True)
    assert [[Path(path).name for path in pair] for pair in found] == [
        ["a_0_leftImg8bit.png", "a_0_gtFine_labelTrainIds.png"],
        ["b_1_leftImg8bit.png", "b_1_gtFine_labelTrainIds.png"],
    ]


def test_every_unmatched_file_is_named(tmp_path: Path) -> None:
    images, maps = str(tmp_path / "images"), str(tmp_path / "maps")
    for name in ("a", "b", "c"):
        write(Path(images) / f"{name}.jpg", [[0]])
    for name in ("b", "x"):
        write(Path(maps) / f"{name}.png", [[0]])
    with pytest.raises(UserError) as caught:
        image_pairs(images, maps, both=True)
    said = str(caught.value)
    assert all(f"{n}.jpg has no annotation: {maps}/{n}.png is missing" in said for n in "ac") and "b.jpg" not in said
    assert f"annotation {maps}/x.png has no image in {images}" in said
    for name in "ac":
        write(Path(maps) / f"{name}.png", [[0]])
    assert len(image_pairs(images, maps)) == 3  # a label map more is no harm to a data set that others made
    for i in range(LISTED + 5):
        write(Path(images) / f"{i}.jpg", [[0]])
    with pytest.raises(UserError, match=r"is missing; and 5 more$"):
        image_pairs(images, maps)


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("road\ntraffic light\r\ncar\n\n")
    assert class_names(path) == ("road", "traffic light", "car")
    for text, says in (("", "no class"), ("a\n\nb\n", "an empty line"), ("a\nb\na", "'a' twice")):
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            class_names(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="are no UTF-8 text"):
        class_names(path)
    with pytest.raises(UserError, match=r"nothing\.txt: No such file"):
        class_names(tmp_path / "nothing.txt")
