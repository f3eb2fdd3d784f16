"""Every layout that real data come in, made small; what is missing or broken is named in one line."""

import json
import pickle
import shutil
import tarfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.readers import reader_wds
from torch import Tensor, nn

from paperkit.data.cifar import open_cifar
from paperkit.data.images import ImageData, posterize
from paperkit.data.layouts import (
    class_order,
    folder_classes,
    imagenet_classes,
    open_image_folder,
    open_tiny_imagenet,
)
from paperkit.data.streams import EpochSampler, check_shards
from paperkit.errors import UserError
from paperkit.testing.made_images import WNIDS, make_cifar, make_image_folder, make_tiny_imagenet

Batches = list[tuple[Tensor, Tensor]]
SMALL: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "input_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("imagenet"), per_class=6)


def opened(root: Path, **options: Any) -> ImageData:
    data = ImageData(str(root), **{**SMALL, **options})
    data.setup()
    return data


def batches(data: ImageData, epoch: int = 0) -> Batches:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def plain(image: Image.Image, resize: int, crop: int) -> Tensor:
    """Evaluation by hand: the shorter side to `resize`, centre crop, ImageNet's mean and deviation."""
    width, height = image.size
    scale = resize / min(width, height)
    image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (round((side - crop) / 2) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float32) / 255
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)


# --- layouts ---------------------------------------------------------------------------------------------------------


def packed(root: Path, target: Path, per_class: bool, names: Sequence[str] = WNIDS[:2]) -> Path:
    """The folders of `root` as train.tar and val.tar, or as a folder of one tar file for each class."""
    for split in ("train", "val"):
        for name in names:
            path = target / split / f"{name}.tar" if per_class else target / f"{split}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(path, "a") as tar:
                for image in sorted((root / split / name).iterdir()):
                    tar.add(image, image.name if per_class else f"{name}/{image.name}")
    return target


@pytest.mark.parametrize("layout", ["folder", "tar", "tar per class"])
def test_imagenet_layouts_give_the_same_images(folder: Path, tmp_path: Path, layout: str) -> None:
    root = folder if layout == "folder" else packed(folder, tmp_path, layout == "tar per class")
    train, val = open_image_folder(root)
    assert list(train.labels) == list(val.labels) == [0] * 6 + [1] * 6
    for split, images in (("train", train), ("val", val)):
        for index in (0, 7):
            name = WNIDS[images.labels[index]]
            original = Image.open(folder / split / name / f"{name}_{index % 6}.JPEG")
            image, label = images[index]
            assert label == index // 6
            assert np.array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


def test_wordnet_names_keep_imagenets_numbers(tmp_path: Path) -> None:
    """A part of ImageNet's classes keeps ImageNet's numbers under a head of 1000; others have their own."""
    root = make_image_folder(tmp_path, classes=[WNIDS[4], WNIDS[1]], per_class=1)
    assert list(opened(root, num_classes=1000, batch_size=1)._train.images.labels) == [1, 4]
    assert list(opened(root, num_classes=2, batch_size=1)._train.images.labels) == [0, 1]
    other = make_image_folder(tmp_path / "other", classes=["cat", "ant"], per_class=1)
    assert list(opened(other, num_classes=1000, batch_size=1)._train.images.labels) == [0, 1]


def test_tiny_imagenet_reads_its_annotations(tmp_path: Path) -> None:
    root = make_tiny_imagenet(tmp_path / "tiny-imagenet-200", classes=[WNIDS[2], WNIDS[0]], per_class=3)
    for place in (root, tmp_path):
        train, val = open_tiny_imagenet(place)
        assert list(train.labels) == [0, 0, 0, 1, 1, 1]  # WNIDS[0] comes first in the alphabet
        assert list(val.labels) == [1, 1, 1, 0, 0, 0]  # in the order of the annotations
    means = {label: np.asarray(image).mean((0, 1)) for image, label in (train[0], train[3])}
    for index in range(6):
        image, label = val[index]
        assert abs(np.asarray(image).mean((0, 1)) - means[label]).max() < 5
        assert abs(np.asarray(image).mean((0, 1)) - means[1 - label]).max() > 20


@pytest.mark.parametrize(("dataset", "train_images", "classes"), [("cifar10", 50, 10), ("cifar100", 10, 100)])
def test_cifar_pixels_and_labels(tmp_path: Path, dataset: str, train_images: int, classes: int) -> None:
    root = make_cifar(tmp_path, dataset)
    train, test = open_cifar(root, dataset)
    assert (len(train), len(test)) == (train_images, 10)
    assert list(test.labels) == list(range(10))
    file = next(root.glob("*/test*"))
    pixels = pickle.loads(file.read_bytes())[b"data"][3]
    image = np.asarray(test[3][0])
    # Rows of 1024 red, green and blue values: pixel (row 2, column 5) of each plane.
    assert image[2, 5].tolist() == [pixels[plane * 1024 + 2 * 32 + 5] for plane in range(3)]
    assert ImageData(str(root), dataset).num_classes == classes


# --- folders as people have them -------------------------------------------------------------------------------------


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "animals", classes=["bee", "ant", "cat"], per_class=4)


def labels_of(data: ImageData) -> list[int]:
    return torch.cat([labels for _, labels in data.val_dataloader()]).tolist()


@pytest.mark.parametrize("within", ["images", "2024/summer"])
def test_the_class_is_the_folder_beneath_the_split(animals: Path, within: str) -> None:
    for split in ("train", "val"):
        for name in ("bee", "ant"):
            images = list((animals / split / name).iterdir())
            (animals / split / name / within).mkdir(parents=True)
            for image in images[:3]:
                image.rename(animals / split / name / within / image.name)
    data = opened(animals)
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.num_classes == 3
    assert labels_of(data) == [0] * 4 + [1] * 4 + [2] * 4


def test_what_systems_leave_behind_is_no_class_and_no_image(animals: Path) -> None:
    for place in (animals, animals / "train", animals / "val", animals / "train" / "ant", animals / "val" / "ant"):
        for name in (".ipynb_checkpoints", "__MACOSX", ".Trash-1000", "@eaDir"):
            (place / name).mkdir()
            shutil.copy(animals / "train" / "ant" / "ant_0.JPEG", place / name / "copy.jpg")
        for name in ("._ant_0.JPEG", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (place / name).write_bytes(b"no image")
    data = opened(animals)
    assert data.class_names == ["ant", "bee", "cat"]
    assert labels_of(data) == [0] * 4 + [1] * 4 + [2] * 4
    assert len(data.indices("train")) == 12


@pytest.mark.parametrize(
    "names",
    [("training", "validation"), ("train", "test"), ("Train", "Val"), ("TRAINING", "valid"), ("train", "testing")],
)
def test_splits_go_by_several_names(animals: Path, names: tuple[str, str]) -> None:
    for old, new in zip(("train", "val"), names, strict=True):
        (animals / old).rename(animals / new)
    data = opened(animals)
    assert (data.num_classes, data.class_names) == (3, ["ant", "bee", "cat"])
    assert labels_of(data) == [0] * 4 + [1] * 4 + [2] * 4


def test_two_folders_for_one_split_are_refused_and_a_test_split_beside_val_is_left(animals: Path) -> None:
    shutil.copytree(animals / "train", animals / "test")
    (animals / "test" / "dog").mkdir()
    assert len(opened(animals).indices("val")) == 12
    shutil.copytree(animals / "train", animals / "training")
    assert refused(animals) == (f"{animals} holds train and training, which both may be the train split; leave one")
    shutil.rmtree(animals / "training")
    shutil.copytree(animals / "val", animals / "validation")
    assert "holds val and validation, which both may be the val split" in refused(animals)


def test_a_class_of_one_split_is_named(animals: Path) -> None:
    shutil.copytree(animals / "train" / "ant", animals / "train" / "yak")
    shutil.copytree(animals / "val" / "ant", animals / "val" / "gnu")
    assert refused(animals).endswith("yak only in train, gnu only in val: complete the copy")


def test_endings_in_any_case_are_images(animals: Path) -> None:
    first = animals / "train" / "ant" / "ant_0.JPEG"
    image = Image.open(first)
    for name in ("a.JPG", "b.jpeg", "c.webp", "d.BMP", "e.tif", "f.TIFF", "g.Png", "h.gif", "i.jfif", "j.avif"):
        format_of = {".jfif": "JPEG"}.get(Path(name).suffix.lower())
        image.save(animals / "train" / "ant" / name, format=format_of)
    (animals / "train" / "ant" / "notes.txt").write_text("no image")
    assert len(opened(animals).indices("train")) == 12 + 10


@pytest.mark.parametrize("ending", ["heic", "HEIC", "svg", "dng"])
def test_pictures_that_cannot_be_read_are_not_left_out(animals: Path, ending: str) -> None:
    path = animals / "train" / "ant" / f"x.{ending}"
    path.write_bytes(b"")
    assert refused(animals).startswith(f"{path}: {ending.upper()} is not read; save it as JPEG")


def test_links_are_followed_and_broken_ones_named(animals: Path, tmp_path: Path) -> None:
    (animals / "train" / "cat").rename(tmp_path / "elsewhere")
    (animals / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    (animals / "train" / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    assert opened(animals).num_classes == 3
    assert len(opened(animals).indices("train")) == 16
    for link in (animals / "train" / "ant" / "x.jpg", animals / "train" / "dog", animals / "val" / "bee" / "more"):
        link.symlink_to("nowhere")
        assert refused(animals) == f"{link} is a link to nowhere, which does not exist: complete the copy"
        link.unlink()
    for target in (animals / "train" / "ant", animals / "train", tmp_path):
        link = animals / "train" / "ant" / "round"
        link.symlink_to(target)
        assert refused(animals).startswith(f"{link} is a link to {target}, in which it lies itself")
        link.unlink()


def test_the_number_of_classes_follows_the_folder_without_a_look_at_an_image(animals: Path, tmp_path: Path) -> None:
    for image in animals.rglob("*.JPEG"):
        image.write_bytes(b"")
    assert ImageData(str(animals)).num_classes == 3
    assert ImageData(str(animals), num_classes=5).num_classes == 5
    assert folder_classes(animals) == ["ant", "bee", "cat"]
    for name in imagenet_classes():
        (tmp_path / "imagenet" / "train" / name).mkdir(parents=True)
    whole = ImageData(str(tmp_path / "imagenet"))
    assert (whole.num_classes, whole.class_names) == (1000, imagenet_classes())
    assert class_order(["n01443537", "n01440764"], 1000) == imagenet_classes()
    with pytest.raises(UserError, match=f"{tmp_path / 'none'} does not exist; it should hold train/<class>"):
        _ = ImageData(str(tmp_path / "none")).num_classes
    with pytest.raises(UserError, match="has 3 classes, but num_classes is 2: ant, bee, cat"):
        _ = ImageData(str(animals), num_classes=2).class_names
    with pytest.raises(UserError, match="num_classes 0 must be at least 1"):
        ImageData(str(animals), num_classes=0)


def test_a_single_class_is_no_task(animals: Path) -> None:
    """What an archive leaves that was unpacked into a folder of its own name."""
    for split in ("train", "val"):
        (animals / split).rename(animals / "moved")
        (animals / split).mkdir()
        (animals / "moved").rename(animals / split / "pictures")
    assert refused(animals).startswith(
        f"{animals} has one class, pictures: the classes are the folders directly beneath"
    )


def test_a_folder_of_other_classes_is_refused_for_imagenets_head(animals: Path, tmp_path: Path) -> None:
    for options in ({}, {"num_classes": 1000}):
        data = ImageData(str(animals), **{**SMALL, **options})
        with pytest.raises(
            UserError, match=r"3 of the 3 classes of .* are not among the 1000 of ImageNet \(ant, bee, cat\)"
        ):
            data.use_head(1000)
    with pytest.raises(UserError, match="has 3 classes, but the head tells 10 apart"):
        data.use_head(10)
    with pytest.raises(UserError, match=r"1 of the 3 classes of .* are not among the 2 of the head"):
        data.use_head(2, ["ant", "cat"])
    data.use_head(3)
    assert labels_of(data.setup() or data) == [0] * 4 + [1] * 4 + [2] * 4
    data.use_head(4, ["cat", "dog", "bee", "ant"])  # as the head was trained, not as the alphabet has it
    data.setup()
    assert labels_of(data) == [3] * 4 + [2] * 4 + [0] * 4
    assert data.num_classes == 4
    part = ImageData(str(make_image_folder(tmp_path / "part", [WNIDS[3], WNIDS[1]], 4)), **SMALL)
    assert part.num_classes == 2
    part.use_head(1000)
    part.setup()
    assert labels_of(part) == [1] * 4 + [3] * 4
    cifar = ImageData("unused", "cifar10")
    cifar.use_head(10)
    with pytest.raises(UserError, match="cifar10 has 10 classes, but the head tells 1000 apart"):
        cifar.use_head(1000)


def tarred(path: Path, files: dict[str, Path]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, file in files.items():
            tar.add(file, name)
    return path


@pytest.mark.parametrize("prefix", ["", "./", "train/", "./data/train/"])
def test_tar_files_as_people_have_them(animals: Path, tmp_path: Path, prefix: str) -> None:
    """Packed with the folder itself, nested, with what macOS adds; every member is what it was."""
    for split in ("train", "val"):
        files = {}
        for image in sorted((animals / split).rglob("*.JPEG")):
            name = image.parent.name
            files[f"{prefix}{name}/{'deep/' if name == 'bee' else ''}{image.stem}.JPG"] = image
            files[f"{prefix}{name}/._{image.stem}.JPG"] = animals / "train" / "ant" / "ant_0.JPEG"
            files[f"__MACOSX/{name}/{image.stem}.JPG"] = animals / "train" / "ant" / "ant_0.JPEG"
        tarred(tmp_path / "tars" / f"{split}.tar", files)
    data, plain_data = opened(tmp_path / "tars"), opened(animals)
    assert data.class_names == ["ant", "bee", "cat"]
    assert labels_of(data) == labels_of(plain_data)
    for (images, _), (wanted, _) in zip(data.val_dataloader(), plain_data.val_dataloader(), strict=True):
        assert torch.equal(images, wanted)


def test_tar_files_in_a_tar_file_are_classes(animals: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        inner = {}
        for name in ("ant", "bee", "cat"):
            images = {image.name: image for image in sorted((animals / split / name).iterdir())}
            inner[f"{name}.tar"] = tarred(tmp_path / split / f"{name}.tar", images)
        tarred(tmp_path / "tars" / f"{split}.tar", inner)
    data = opened(tmp_path / "tars")
    assert data.class_names == ["ant", "bee", "cat"]
    image, label = data._train.images[5]
    assert label == 1
    assert image == Image.open(animals / "train" / "bee" / "bee_1.JPEG").convert("RGB")
    assert opened(tmp_path).num_classes == 3  # the tar files side by side in train/ and val/


def test_unclear_tar_files_are_refused(animals: Path, tmp_path: Path) -> None:
    images = sorted((animals / "train").rglob("*.JPEG"))
    loose = {image.name: image for image in images}
    for split in ("train", "val"):
        tarred(tmp_path / "loose" / f"{split}.tar", loose)
        tarred(tmp_path / "empty" / f"{split}.tar", {})
        for part in ("0", "1"):
            tarred(tmp_path / "parts" / split / f"{part}.tar", {f"{i.parent.name}/{i.name}": i for i in images})
    assert "holds images outside class folders" in refused(tmp_path / "loose")
    assert refused(tmp_path / "empty").startswith(f"cannot read {tmp_path / 'empty' / 'train.tar'}: it holds no image")
    assert "holds several tar files, and 0 in it several folders (ant, bee, cat)" in refused(tmp_path / "parts")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_member_of_a_tar_file_is_named(animals: Path, tmp_path: Path, workers: int) -> None:
    (animals / "val" / "bee" / "bee_1.JPEG").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    root = packed(animals, tmp_path / "tars", per_class=False, names=("ant", "bee", "cat"))
    loader = opened(root, num_workers=workers).val_dataloader()
    with pytest.raises(UserError) as caught:
        list(loader)
    if workers:
        loader._iterator._shutdown_workers()
    assert str(caught.value) == (
        f"cannot read image bee/bee_1.JPEG of {root / 'val.tar'}: it is a Git LFS pointer, not the file itself; "
        "fetch it with: git lfs pull"
    )


# --- transforms ------------------------------------------------------------------------------------------------------


def test_evaluation_is_resize_and_centre_crop(folder: Path) -> None:
    data = opened(folder, input_size=28)  # 28 / 0.875 = 32
    images = torch.cat([x for x, _ in data.val_dataloader()])
    first = Image.open(folder / "val" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG")
    torch.testing.assert_close(images[0], plain(first, 32, 28), atol=1e-5, rtol=0)
    squashed = opened(folder, input_size=28, crop_pct=1.0, crop_mode="squash")
    image = first.resize((28, 28), Image.Resampling.BICUBIC)
    torch.testing.assert_close(next(iter(squashed.val_dataloader()))[0][0], plain(image, 28, 28), atol=1e-5, rtol=0)


def test_training_transform_is_deits(folder: Path) -> None:
    crop, flip, augment, *_, erase = ImageData(str(folder)).train_transform.transforms
    assert (tuple(crop.size), crop.scale, crop.interpolation.value) == ((224, 224), (0.08, 1.0), "bicubic")
    assert flip.p == 0.5
    assert len(augment.ops) == 15  # the "increasing" set of timm
    assert augment.num_layers == 2
    assert {(op.magnitude, op.magnitude_std, op.prob) for op in augment.ops} == {(9, 0.5, 0.5)}
    assert (erase.probability, erase.per_pixel, erase.max_count) == (0.25, True, 1)
    plainer = ImageData(str(folder), auto_augment=None, re_prob=0.0, color_jitter=0.3).train_transform.transforms
    assert plainer[2].brightness == (0.7, 1.3)
    assert len(plainer) == 5


def test_small_images_are_padded_and_cropped(tmp_path: Path) -> None:
    """Without other augmentation the crop of the padded image holds the original, moved by at most four pixels."""
    quiet: dict[str, Any] = {"auto_augment": None, "re_prob": 0.0, "color_jitter": 0.0, "hflip": 0.0}
    data = opened(make_cifar(tmp_path), dataset="cifar10", train_crop="padded", crop_pct=1.0, **quiet)
    originals = {int(y): x for x, y in zip(*next(iter(data.val_dataloader())), strict=True)}
    assert originals[0].shape == (3, 32, 32)
    train, _ = open_cifar(tmp_path, "cifar10")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    draws = next(iter(data.train_dataloader().sampler))
    shifts = set()
    for draw, image in zip(draws, batches(data)[0][0], strict=True):
        pixels = torch.from_numpy(np.array(train[draw.index][0])).float() / 255
        padded = nn.functional.pad(pixels.permute(2, 0, 1), (4, 4, 4, 4))
        wanted = (padded - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        fits = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.allclose(wanted[:, top : top + 32, left : left + 32], image, atol=1e-5)
        ]
        assert len(fits) == 1
        shifts.add(fits[0])
    assert len(shifts) > 1


def test_full_posterising_is_black() -> None:
    """timm's strongest posterising keeps no bit; all pixels are 0 then, on every version of Pillow."""
    image = Image.fromarray(np.full((4, 4, 3), 255, dtype=np.uint8))
    assert [np.asarray(posterize(image, bits)).max() for bits in (0, 1, 4, 8)] == [0, 128, 240, 255]
    for policy, attribute in (("rand-m9-mstd0.5-inc1", "ops"), ("augmix-m3", "ops"), ("v0", "policy")):
        found = getattr(ImageData("unused", auto_augment=policy).train_transform.transforms[2], attribute)
        functions = [op.aug_fn for op in (found if attribute == "ops" else chain(*found))]
        assert posterize in functions
        assert auto_augment.posterize not in functions
    assert posterize not in auto_augment.NAME_TO_OP.values()


def test_split_erasing_leaves_the_first_half(folder: Path) -> None:
    """The ResNets' recipe: probability 1 in the second half of the batch, none in the first."""
    (clean, _), *_ = batches(opened(folder, re_prob=0.0))
    (erased, _), *_ = batches(opened(folder, re_prob=1.0, re_splits=2))
    assert torch.equal(clean[:2], erased[:2])
    assert (clean[2] != erased[2]).any()
    assert (clean[3] != erased[3]).any()
    again = batches(opened(folder, re_prob=1.0, re_splits=2))[0][0]
    assert torch.equal(again, erased)


# --- randomness and splits -------------------------------------------------------------------------------------------


def test_batches_are_functions_of_seed_and_epoch_not_of_workers(folder: Path) -> None:
    alone, helped = batches(opened(folder), epoch=2), batches(opened(folder, num_workers=2), epoch=2)
    assert len(alone) == 3 == opened(folder).steps_per_epoch
    for (x, y), (x2, y2) in zip(alone, helped, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    for other in (batches(opened(folder), epoch=1), batches(opened(folder, seed=1), epoch=2)):
        assert not torch.equal(other[0][0], alone[0][0])


def test_repeats_augment_each_copy_anew(folder: Path) -> None:
    data = opened(folder, repeats=3, batch_size=6)
    draws = next(iter(data.train_dataloader().sampler))
    assert [draw.copy for draw in draws] == [0, 1, 2, 0, 1, 2]
    assert len({draw.index for draw in draws}) == 2
    images, labels = batches(data)[0]
    assert len(set(labels[:3].tolist())) == 1
    assert not torch.equal(images[0], images[1])


def test_held_out_images_come_from_training_class_by_class(folder: Path) -> None:
    whole, part = opened(folder), opened(folder, val_fraction=1 / 3, seed=7)
    assert len(part.train_dataloader()) == 2  # 8 of 12 images
    labels = torch.cat([y for _, y in part.val_dataloader()])
    assert labels.tolist() == [0, 0, 1, 1]
    held_out, kept = set(part.indices("val")), set(part.indices("train"))
    assert held_out | kept == set(range(12))
    assert not held_out & kept
    assert held_out == set(opened(folder, val_fraction=1 / 3).indices("val")), "the run seed moved the split"
    for images, same in zip(part.test_dataloader(), whole.test_dataloader(), strict=True):
        assert torch.equal(images[0], same[0])


def test_subset_keeps_the_listed_images(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "keep.txt"
    listed.write_text("0 3\n7 11 5\n")
    assert opened(folder, subset=str(listed)).indices("train").tolist() == [0, 3, 5, 7, 11]
    part = opened(folder, subset=str(listed), val_fraction=1 / 3)
    assert set(part.indices("train")) == {0, 3, 5, 7, 11} - set(part.indices("val"))


class Recorder(pl.LightningModule):
    """Notes a fingerprint of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch[0].double().sum().item())
        return self.layer(batch[1][:, None].float()).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def test_resumed_epoch_continues_with_the_next_images(folder: Path, tmp_path: Path) -> None:
    def fit(steps: int, ckpt: Path | None = None) -> tuple[list[float], pl.Trainer]:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", enable_checkpointing=False, **quiet)  # type: ignore[arg-type]
        model = Recorder()
        data = ImageData(str(folder), **{**SMALL, "num_workers": 2})
        trainer.fit(model, datamodule=data, ckpt_path=ckpt)
        return model.seen, trainer

    whole, _ = fit(8)
    front, trainer = fit(5)  # the second epoch has three batches: one of them is left
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    rest, _ = fit(8, tmp_path / "five.ckpt")
    assert len(set(whole)) == 8
    assert front + rest == whole


# --- what users get wrong --------------------------------------------------------------------------------------------


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to break."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_missing_folders_are_named_with_their_layout(broken: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "none").startswith(
        f"{tmp_path / 'none'} does not exist; it should hold train/<class>/*.JPEG"
    )
    shutil.rmtree(broken / "val")
    assert refused(broken).startswith(f"{broken} holds no val or val.tar; it should hold train/<class>/*.JPEG and val/")
    for dataset, content in (
        ("cifar10", "data_batch_1, "),
        ("cifar100", "train, test"),
        ("tinyimagenet", "val/val_annot"),
    ):
        message = refused(tmp_path / "none", dataset=dataset)
        assert "does not exist; it should hold" in message
        assert content in message


def test_half_copied_folders_are_refused(broken: Path) -> None:
    (broken / "train" / "n99999999").mkdir()
    expected = f"1 of 3 class folders of {broken / 'train'} hold no image, such as n99999999: complete the copy"
    assert refused(broken) == expected
    (broken / "train" / "n99999999").rmdir()
    shutil.rmtree(broken / "val" / WNIDS[1])
    both = f"{broken / 'train'} has 2 classes and {broken / 'val'} has 1"
    assert refused(broken) == f"{both}; {WNIDS[1]} only in train: complete the copy"
    shutil.rmtree(broken / "val" / WNIDS[0])
    assert refused(broken).startswith(f"{broken / 'val'} holds no class folder; the layout is train/<class>/*.JPEG")


def test_unsorted_validation_images_are_refused(broken: Path) -> None:
    for image in (broken / "val" / WNIDS[0]).iterdir():
        image.rename(broken / "val" / image.name)
    (broken / "val" / WNIDS[0]).rmdir()
    assert "holds images outside class folders; sort them into" in refused(broken)


def test_truncated_tar_is_refused(folder: Path, tmp_path: Path) -> None:
    root = packed(folder, tmp_path, per_class=False)
    content = (root / "val.tar").read_bytes()
    (root / "val.tar").write_bytes(content[:3000])
    assert refused(root).startswith(f"cannot read {root / 'val.tar'}: unexpected end of data")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_broken_image_is_named_through_worker_processes(broken: Path, workers: int, damage: str) -> None:
    image = broken / "train" / WNIDS[1] / f"{WNIDS[1]}_3.JPEG"
    image.write_bytes({"truncated": image.read_bytes()[:500], "empty": b"", "text": b"<html>404</html>"}[damage])
    loader = opened(broken, num_workers=workers).train_dataloader()
    with pytest.raises(UserError) as caught:
        list(loader)
    if workers:
        loader._iterator._shutdown_workers()  # as Lightning does; torch alone waits five seconds for each of them
    message = str(caught.value)
    assert message.startswith(f"cannot read image {image} of {broken / 'train'}: ")
    assert message.endswith("; copy it again")
    assert "Traceback" not in message


def test_broken_cifar_files_are_named(tmp_path: Path) -> None:
    root = make_cifar(tmp_path)
    file = root / "cifar-10-batches-py" / "data_batch_3"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert refused(root, dataset="cifar10").startswith(f"cannot read {file}: ")
    file.unlink()
    assert refused(root, dataset="cifar10").startswith(f"{file} does not exist")
    file.write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, protocol=2))
    assert "2 images and 1 labels" in refused(root, dataset="cifar10")


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_cifar_files_cannot_run_code(tmp_path: Path) -> None:
    root = make_cifar(tmp_path)
    file = root / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(pickle.dumps({b"data": Hostile(tmp_path / "ran")}, protocol=2))
    assert "is no number, array or tensor" in refused(root, dataset="cifar10")
    assert not (tmp_path / "ran").exists()


def test_incomplete_tiny_imagenet_is_refused(tmp_path: Path) -> None:
    root = make_tiny_imagenet(tmp_path)
    (root / "val" / "images" / "val_3.JPEG").unlink()
    message = refused(root, dataset="tinyimagenet")
    assert message.startswith(f"1 of 8 validation images are missing, such as {root / 'val' / 'images' / 'val_3.JPEG'}")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn00000000\t0\n")
    assert "does not hold lines of an image and one of the 2 classes" in refused(root, dataset="tinyimagenet")
    (root / "val" / "val_annotations.txt").unlink()
    assert refused(root, dataset="tinyimagenet").startswith(f"{root / 'val' / 'val_annotations.txt'} does not exist")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "imagnet"}, "data set 'imagnet' is unknown; choose imagenet, cifar10"),
        ({"val_fraction": 1.0}, r"val_fraction 1\.0 must be at least 0 and below 1"),
        ({"val_fraction": 0.01}, r"val_fraction 0\.01 of 12 training images leaves none"),
        ({"num_classes": 1}, "has 2 classes, but num_classes is 1"),
        ({"dataset": "wds/x", "repeats": 3}, "wds/x is a stream: repeats"),
        ({"subset": "/nonexistent/list"}, "cannot read subset /nonexistent/list: No such file"),
        ({"batch_size": 13}, "12 training samples do not fill one batch of 13"),
    ],
)
def test_impossible_options_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(folder, **options).train_dataloader()


@pytest.mark.parametrize("content", ["", "1 2 x", "1 12", "-1", "3 3"])
def test_wrong_subsets_are_refused(folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "list").write_text(content)
    assert f"subset {tmp_path / 'list'} must hold" in refused(folder, subset=str(tmp_path / "list"))


# --- streams ---------------------------------------------------------------------------------------------------------


def test_streams_resume_only_at_an_epochs_beginning() -> None:
    sampler = EpochSampler(40, 0, batch_size=4)
    sampler.seek(3)
    assert sampler.epoch == 3
    with pytest.raises(UserError, match=r"cannot be resumed in the middle of an epoch \(batch 2 of epoch 4\)"):
        sampler.seek(4, 2)
    data = ImageData("unused", "wds/x")
    data.load_state_dict(
        {"epoch": 4, "batch": 2, "images": 40, "batch size": 4, "processes": 1, "repeats": 1, "seed": 0}
    )
    with pytest.raises(UserError, match="in the middle of an epoch"):
        data.place(EpochSampler(40, 0, batch_size=4))


def shards(folder: Path, root: Path) -> Path:
    """The images of a folder as WebDataset shards, two a split, with timm's _info.json."""
    root.mkdir()
    info = {}
    for split in ("train", "val"):
        files = sorted((folder / split).glob("*/*.JPEG"))
        names = [f"{split}-{k}.tar" for k in range(2)]
        for k, name in enumerate(names):
            with tarfile.open(root / name, "w") as tar:
                for number, image in enumerate(files[k::2]):
                    label = root / "label.cls"
                    label.write_text(str(WNIDS.index(image.parent.name)))
                    tar.add(image, f"{number}.jpg")
                    tar.add(label, f"{number}.cls")
        lengths = [len(files[k::2]) for k in range(2)]
        info[split] = {"name": split, "num_samples": len(files), "filenames": names, "shard_lengths": lengths}
    (root / "_info.json").write_text(json.dumps({"splits": info}))
    return root


def test_missing_and_half_copied_shards_are_refused(folder: Path, tmp_path: Path) -> None:
    root = shards(folder, tmp_path / "shards")
    names = ["train-0.tar", "train-1.tar"]
    check_shards(root, names)
    content = (root / "train-1.tar").read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512
    for length in (0, 512, end, end + 512, len(content) - 5):
        (root / "train-1.tar").write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"shard .*train-1\.tar ends early \({length} bytes\); copy it again"):
            check_shards(root, names)
    (root / "train-1.tar").unlink()
    with pytest.raises(UserError, match=r"train-1\.tar is missing; .* should hold all 2 shards"):
        check_shards(root, names)


def test_streams_say_which_package_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paperkit.data.layouts.find_spec", lambda name: None)
    assert refused(tmp_path, dataset="wds/x") == "reading wds/ needs the package webdataset: pip install webdataset"
    assert refused(tmp_path, dataset="hfds/x") == "reading hfds/ needs the package datasets: pip install datasets"


@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset_epochs_repeat_exactly(folder: Path, tmp_path: Path, workers: int) -> None:
    pytest.importorskip("webdataset")
    root = shards(folder, tmp_path / "shards")
    data = opened(root, dataset="wds/x", val_split="val", num_workers=workers)
    first, second, again = (batches(data, epoch) for epoch in (0, 1, 0))
    assert len(first) == len(second) == 3 == data.steps_per_epoch
    assert [x.sum() for x, _ in first] == [x.sum() for x, _ in again]
    assert [x.sum() for x, _ in first] != [x.sum() for x, _ in second]
    assert sorted(torch.cat([y for _, y in data.val_dataloader()]).tolist()) == [0] * 6 + [1] * 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_sample_of_a_shard_is_named(folder: Path, tmp_path: Path, workers: int) -> None:
    pytest.importorskip("webdataset")
    root = shards(folder, tmp_path / "shards")
    content = (root / "val-1.tar").read_bytes()
    start = content.index(b"\xff\xd8\xff")  # of the first image
    (root / "val-1.tar").write_bytes(content[:start] + b"no image" + content[start + 8 :])
    data = opened(root, dataset="wds/x", val_split="val", num_workers=workers)
    kept = reader_wds._decode, reader_wds.log_and_continue
    with pytest.raises(UserError) as caught:
        list(data.val_dataloader())
    assert str(caught.value).startswith(f"cannot read image 0.jpg of {root / 'val-1.tar'}: it is no image")
    assert kept == (reader_wds._decode, reader_wds.log_and_continue)
    start = content.index(b"ustar") - 257
    (root / "val-1.tar").write_bytes(content[:start] + b"x" * 100 + content[start + 100 :])
    with pytest.raises(
        UserError, match=r"^cannot read a sample of the shards: bad checksum, .*val-1\.tar; copy them again$"
    ):
        list(data.val_dataloader())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_of_a_hugging_face_folder_is_named(folder: Path, tmp_path: Path, workers: int) -> None:
    pytest.importorskip("datasets")
    root = Path(shutil.copytree(folder, tmp_path / "copy"))
    image = root / "val" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"
    image.write_bytes(image.read_bytes()[:500])
    options = {"dataset": f"hfds/{root}", "val_split": "validation", "num_classes": 2, "num_workers": workers}
    with pytest.raises(UserError, match=f"^cannot read image {image} of hfds/{root}") as caught:
        list(opened(tmp_path / "cache", **options).val_dataloader())
    assert "Traceback" not in str(caught.value)


def test_hugging_face_folder(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    data = opened(tmp_path / "cache", dataset=f"hfds/{folder}", val_split="validation", num_classes=2)
    assert torch.cat([y for _, y in data.val_dataloader()]).tolist() == [0] * 6 + [1] * 6
    assert len(batches(data)) == 3
