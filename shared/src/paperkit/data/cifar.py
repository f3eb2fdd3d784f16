"""CIFAR-10 and CIFAR-100 in their Python version: pickles of bytes and labels, read without running what they name."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from paperkit.data.layouts import Images, require
from paperkit.errors import UserError
from paperkit.files.array_pickles import load_arrays


def open_cifar(root: Path, dataset: str) -> tuple[Images, Images]:
    """(training, test) images of CIFAR-10 or CIFAR-100 in their Python version."""
    folder, train, test, key = {
        "cifar10": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "labels"),
        "cifar100": ("cifar-100-python", ["train"], ["test"], "fine_labels"),
    }[dataset]
    base = root if root.name == folder else root / folder
    require(base, f"{', '.join(train + test)} (the unpacked Python version of {dataset.upper()})")
    return _read_cifar(base, train, key), _read_cifar(base, test, key)


class _ArrayImages:
    """Images that lie in memory as (N, 32, 32, 3) bytes."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int]) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), int(self.labels[index])


def _read_cifar(base: Path, names: Sequence[str], key: str) -> _ArrayImages:
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for name in names:
        require(base / name, f"images of {base.name}")
        try:
            with (base / name).open("rb") as file:
                content = load_arrays(file, encoding="latin1")
            content = {k.decode() if isinstance(k, bytes) else k: value for k, value in content.items()}
            part = content["data"].content.astype(np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            if len(part) != len(content[key]):
                raise ValueError(f"{len(part)} images and {len(content[key])} labels")
        except Exception as error:  # a damaged pickle may raise any
            raise UserError(f"cannot read {base / name}: {error or 'it ends early'}; copy it again") from None
        pixels.append(part)
        labels.extend(int(label) for label in content[key])
    return _ArrayImages(np.concatenate(pixels), labels)
