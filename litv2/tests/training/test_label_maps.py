"""Label maps and images of other endings, colours and sizes, through the data set that a config names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import LITV2, make_ade20k, write_segmentation
from PIL import Image

from paperkit.errors import UserError
from paperkit.training.mmseg_data import SeededADE20K, SeededCityscapes, SeededFolder

PIPELINE = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", reduce_zero_label=True)]
MAPS = "annotations/training"


def data_set(root: Path, **options: Any) -> SeededADE20K:
    prefix = dict(img_path="images/training", seg_map_path=MAPS)
    pipeline = options.pop("pipeline", PIPELINE)
    return SeededADE20K(data_root=str(root), data_prefix=prefix, pipeline=pipeline, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_ade20k(tmp_path, 2)


def write(root: Path, numbers: Any, mode: str | None = None, name: str = "0.png") -> Path:
    """A label map of 70 x 90 pixels with the given numbers at its beginning, else 1."""
    pixels = np.ones((70, 90), np.uint16 if max(numbers) > 255 else np.uint8)
    pixels[0, : len(numbers)] = numbers
    image = Image.fromarray(pixels)
    (root / MAPS / name).unlink(missing_ok=True)
    (image if mode is None else image.convert(mode)).save(root / MAPS / name)
    return root / MAPS / name


def read(root: Path, **options: Any) -> list[int]:
    return data_set(root, **options)[0]["gt_seg_map"][0, :5].tolist()


def test_numbers_are_classes_and_255_is_nothing(root: Path) -> None:
    write(root, [0, 1, 2, 150, 255])
    assert read(root) == [255, 0, 1, 149, 255]
    plain = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
    write(root, [0, 1, 2, 149, 255])
    assert read(root, reduce_zero_label=False, pipeline=plain) == [0, 1, 2, 149, 255]
    with pytest.raises(UserError, match="reduce_zero_label is False in the data set and True in its pipeline"):
        read(root, reduce_zero_label=False)


def test_chosen_classes_keep_their_places(root: Path) -> None:
    """`metainfo` chooses some of ADE20K's classes; the others are nothing."""
    write(root, [0, 1, 2, 3, 255])
    assert read(root, metainfo=dict(classes=("building", "wall"))) == [255, 1, 0, 255, 255]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "LA"])
def test_grey_in_another_form_is_the_same(mode: str, root: Path) -> None:
    if mode == "P":  # a palette's numbers are the classes, whatever its colours
        image = Image.open(write(root, [0, 1, 2, 3, 255]))
        image.putpalette(list(range(255, -1, -1)) * 3)
        image.save(root / MAPS / "0.png")
    elif mode == "I;16":
        path = write(root, [0, 1, 2, 3, 255])
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16)).save(path)
    else:
        write(root, [0, 1, 2, 3, 255], mode)
    assert read(root) == [255, 0, 1, 2, 255]


def test_what_is_no_label_map_is_one_line(root: Path) -> None:
    colours = np.full((70, 90, 3), (120, 120, 80), np.uint8)  # ADE20K's colour of a building
    Image.fromarray(colours).save(root / MAPS / "0.png")
    with pytest.raises(UserError, match=r"annotation .*0\.png is a picture in colour \(RGB\); a label map has one"):
        read(root)
    write(root, [0, 151])
    with pytest.raises(UserError, match=r"0\.png holds the number 151; the 150 classes are 1 to 150, 0 and 255 for"):
        read(root)
    write(root, [0, 257])  # its low byte is 1
    with pytest.raises(UserError, match=r"0\.png holds the number 257"):
        read(root)
    Image.new("L", (90, 60)).save(root / MAPS / "0.png")
    with pytest.raises(UserError, match=r"annotation .*0\.png has 90 x 60 pixels, and its image .*0\.jpg has 90 x 70"):
        read(root)
    (root / MAPS / "0.png").write_bytes(b"\x89PNG nothing more")
    with pytest.raises(UserError, match=r"cannot read image .*0\.png"):
        read(root)


def test_every_ending_counts(root: Path) -> None:
    """`.jpeg` and `.JPG` among `.jpg`; hidden files and notes are none."""
    images = root / "images" / "training"
    for i, ending in enumerate((".jpeg", ".JPG", ".png", ".JPEG"), 2):
        Image.new("RGB", (90, 70), (i, 0, 0)).save(images / f"{i}{ending}")
        Image.new("L", (90, 70), i).save(root / MAPS / f"{i}{'.PNG' if i % 2 else '.tif'}")
    for name in ("._0.jpg", "Thumbs.db", "notes.txt"):
        (images / name).write_text("none")
    (images / ".hidden").mkdir()
    Image.new("RGB", (9, 7)).save(images / ".hidden" / "x.jpg")
    found = data_set(root)
    names = ["0.jpg", "1.jpg", "2.jpeg", "3.JPG", "4.png", "5.JPEG"]
    assert [Path(found.get_data_info(i)["img_path"]).name for i in range(len(found))] == names
    assert [int(found[i]["gt_seg_map"][0, 0]) for i in (2, 3, 4, 5)] == [1, 2, 3, 4]


def test_pairs_that_are_none_are_one_line(root: Path) -> None:
    images = root / "images" / "training"
    Image.new("RGB", (9, 7)).save(images / "0.jpeg")
    with pytest.raises(UserError, match=r"0\.jpe?g and .*0\.jpe?g have one name, and so one annotation"):
        data_set(root)
    (images / "0.jpeg").rename(images / "7.jpeg")
    with pytest.raises(UserError, match=r"7\.jpeg has no annotation: .*7\.png is missing"):
        data_set(root)
    Image.new("L", (9, 7)).save(root / MAPS / "7.jpg")
    with pytest.raises(UserError, match=r"7\.jpeg has no sure annotation but .*7\.jpg, whose kind changes numbers"):
        data_set(root)
    (images / "7.jpeg").rename(images / "7.heic")
    with pytest.raises(UserError, match=r"7\.heic: its kind is not read"):
        data_set(root)


def test_a_turned_photograph_is_upright(root: Path) -> None:
    """Stored on its side, with a label map as it is shown."""
    pixels = np.zeros((70, 90, 3), np.uint8)
    pixels[:10] = (200, 30, 40)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(root / "images" / "training" / "0.jpg", exif=exif)
    Image.new("L", (70, 90), 3).save(root / MAPS / "0.png")
    first = data_set(root)[0]
    assert first["img"].shape == (90, 70, 3) and first["gt_seg_map"].shape == (90, 70)
    assert np.abs(first["img"][:, 65].astype(int) - (40, 30, 200)).max() < 20  # its top is at the right; blue first


def test_cityscapes(tmp_path: Path) -> None:
    """A folder a city; other annotations of the same picture are passed over."""
    for split in ("leftImg8bit", "gtFine"):
        (tmp_path / split / "train" / "bonn").mkdir(parents=True)
    Image.new("RGB", (9, 7)).save(tmp_path / "leftImg8bit" / "train" / "bonn" / "b_1_leftImg8bit.png")
    for kind in ("labelTrainIds", "color"):
        Image.new("L", (9, 7), 18).save(tmp_path / "gtFine" / "train" / "bonn" / f"b_1_gtFine_{kind}.png")
    prefix = dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train")
    options = dict(data_root=str(tmp_path), pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")])
    found = SeededCityscapes(data_prefix=prefix, **options)
    assert len(found) == 1 and (found[0]["gt_seg_map"] == 18).all() and found.metainfo["classes"][18] == "bicycle"
    with pytest.raises(UserError, match=r"no Cityscapes files in .*val; the data root must hold leftImg8bit/\{train"):
        SeededCityscapes(data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"), **options)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    """CamVid's: names of classes in a file, 11 for nothing, palettes as they come; a map too many is one line."""
    for split in ("train", "trainannot"):
        (tmp_path / split).mkdir()
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(11)))
    Image.new("RGB", (9, 7)).save(tmp_path / "train" / "a.png")
    labels = Image.new("P", (9, 7), 10)
    labels.putpalette([1, 2, 3] * 256)
    labels.putpixel((0, 0), 11)
    labels.save(tmp_path / "trainannot" / "a.png")
    options = dict(data_root=str(tmp_path), data_prefix=dict(img_path="train", seg_map_path="trainannot"), void=(11,))
    pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
    found = SeededFolder("classes.txt", pipeline=pipeline, **options)
    assert found[0]["gt_seg_map"][0, :2].tolist() == [255, 10] and len(found.metainfo["palette"]) == 11
    labels.save(tmp_path / "trainannot" / "b.png")
    with pytest.raises(UserError, match=r"annotation .*b\.png has no image in"):
        SeededFolder("classes.txt", **options)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    """Out of a worker process too."""
    config = write_segmentation(tmp_path)
    picture = tmp_path / "ade" / "images" / "training" / "1.jpg"
    picture.write_bytes(picture.read_bytes()[:900])
    words = ["--cfg-options", "train_dataloader.num_workers=1", "train_dataloader.persistent_workers=False"]
    line = LITV2.child("train", "--config", config, *words, cwd=tmp_path, code=1).line
    assert "cannot read image" in line and "training/1.jpg" in line and len(line) < 300
