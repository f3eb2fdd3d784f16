"""Tiny data sets of random images in the layouts that :mod:`paperkit.data.images` reads, for tests and dry runs."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# The first classes of ImageNet-1k and, by chance of the alphabet, well-formed names for any other folder.
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")


def make_image_folder(root: Path, classes: Sequence[str] = WNIDS[:2], per_class: int = 4, size: int = 40) -> Path:
    """``root/{train,val}/<class>/<class>_<i>.JPEG``, ImageNet's layout; every class has a colour of its own."""
    for split in ("train", "val"):
        for label, name in enumerate(classes):
            for i in range(per_class):
                _save(root / split / name / f"{name}_{i}.JPEG", label, i, size)
    return root


def make_tiny_imagenet(root: Path, classes: Sequence[str] = WNIDS[:2], per_class: int = 4) -> Path:
    """``root/train/<class>/images``, ``root/val/images`` and ``root/val/val_annotations.txt``, as it is distributed."""
    lines = []
    for label, name in enumerate(classes):
        for i in range(per_class):
            _save(root / "train" / name / "images" / f"{name}_{i}.JPEG", label, i, 64)
            image = f"val_{label + i * len(classes)}.JPEG"
            _save(root / "val" / "images" / image, label, i, 64)
            lines.append(f"{image}\t{name}\t0\t0\t32\t32\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in classes))
    return root


def make_cifar(root: Path, dataset: str = "cifar10", per_file: int = 10) -> Path:
    """The Python version of CIFAR-10 (five training files and one of tests) or CIFAR-100 (one of each)."""
    folder, files, key, classes = {
        "cifar10": ("cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], b"labels", 10),
        "cifar100": ("cifar-100-python", ["train", "test"], b"fine_labels", 100),
    }[dataset]
    generator = np.random.default_rng(0)
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in files:
        pixels = generator.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        content = {b"data": pixels, key: [i % classes for i in range(per_file)]}
        (root / folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


def make_coco(root: Path, count: int = 4) -> Path:
    """COCO's layout: images with one bright box each, of category cat or dog."""
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        images, objects = [], []
        for i in range(count):
            pixels = generator.integers(0, 90, (80, 100, 3), dtype=np.uint8)
            left, top, width, height = 10 + 5 * i, 20, 30, 25
            pixels[top : top + height, left : left + width, i % 2] = 255
            Image.fromarray(pixels).save(root / split / f"{i}.jpg")
            images.append(dict(id=i + 1, file_name=f"{i}.jpg", height=80, width=100))
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            objects.append(dict(id=i + 1, image_id=i + 1, category_id=[17, 18][i % 2], bbox=[left, top, width, height],
                                area=width * height, iscrowd=0, segmentation=[corners]))  # fmt: skip
        categories = [dict(id=17, name="cat"), dict(id=18, name="dog")]
        content = dict(images=images, annotations=objects, categories=categories)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def _save(path: Path, label: int, number: int, size: int) -> None:
    """A noisy image of one colour, the same for the same label and number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([label, number])
    colour = 255 * np.random.default_rng(label).random(3)
    pixels = np.clip(generator.normal(colour, 20, (size, size + 8, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)
