"""Where image data sets lie on disk, read so that whatever is missing or broken is named in one line.

A data set answers ``images[i]`` with a PIL image in RGB and a label, and ``images.labels`` with all labels. Nothing is
downloaded, and nothing that cannot be decoded is skipped: a data set with silently fewer images is another data set.
"""

import pickle
import tarfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError
from timm.data import ImageNetInfo
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from paperkit.errors import UserError

IMAGE_FOLDER = "train/<class>/*.JPEG and val/<class>/*.JPEG, or train.tar and val.tar with such folders"
SYNONYMS = {"train": ("train", "training"), "val": ("val", "validation", "test")}


class DataError(UserError):
    """A UserError that is still one line when it comes out of a DataLoader's worker process.

    torch raises it again with the worker's whole traceback as its message; the last line of that is the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1])


class Images(Protocol):
    """A data set with random access."""

    labels: Sequence[int]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...

    def __len__(self) -> int: ...


class _ReaderImages:
    """The images of one of timm's readers, without the reader's habit of replacing what it cannot decode."""

    def __init__(self, reader: Any, labels: Sequence[int], source: Path | str) -> None:
        self.reader, self.labels, self.source = reader, labels, source

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            stream = self.reader[index][0]
            with stream, Image.open(stream) as image:
                return image.convert("RGB"), int(self.labels[index])
        except (OSError, EOFError, SyntaxError, ValueError, tarfile.TarError) as error:
            name = self.reader.filename(index, absolute=True)
            why = "it is no image" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(f"cannot read image {name} of {self.source}: {why}; copy it again") from None


class _FileReader(Reader):
    """A list of image files in timm's reader interface."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self.paths = paths

    def __getitem__(self, index: int) -> tuple[Any, None]:
        return self.paths[index].open("rb"), None

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return str(self.paths[index])


class _ArrayImages:
    """Images that lie in memory as (N, 32, 32, 3) bytes."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int]) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), int(self.labels[index])


def open_image_folder(root: Path, num_classes: int) -> tuple[Images, Images]:
    """(training, validation) images of ImageNet's layout, as folders or tar files.

    With 1000 classes and folders named by WordNet ids, a label is the class's place among ImageNet-1k's, so a part of
    the
    classes keeps its numbers; otherwise the folders are numbered in alphabetical order.
    """
    places = [_find_split(root, split) for split in ("train", "val")]
    readers = [_read(place) for place in places]
    train, val = (sorted(reader.names) for reader in readers)
    if train != val:
        odd = sorted(set(train) ^ set(val))
        raise UserError(
            f"{places[0]} has {len(train)} classes and {places[1]} has {len(val)}; {odd[0]} is in one of them only: "
            "complete the copy"
        )
    official = ImageNetInfo("imagenet-1k").label_names()
    names = official if num_classes == len(official) and set(train) <= set(official) else train
    if len(names) > num_classes:
        raise UserError(f"{places[0]} has {len(names)} classes, but num_classes is {num_classes}")
    number = {name: i for i, name in enumerate(names)}
    train_images, val_images = (
        _ReaderImages(reader.reader, [number[name] for name in reader.of_image], place)
        for reader, place in zip(readers, places, strict=True)
    )
    return train_images, val_images


def open_cifar(root: Path, dataset: str) -> tuple[Images, Images]:
    """(training, test) images of CIFAR-10 or CIFAR-100 in their Python version."""
    folder, train, test, key = {
        "cifar10": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "labels"),
        "cifar100": ("cifar-100-python", ["train"], ["test"], "fine_labels"),
    }[dataset]
    base = root if root.name == folder else root / folder
    _require(base, f"{', '.join(train + test)} (the unpacked Python version of {dataset.upper()})")
    return _read_cifar(base, train, key), _read_cifar(base, test, key)


def open_tiny_imagenet(root: Path) -> tuple[Images, Images]:
    """(training, validation) images of TinyImageNet as it is distributed; the test images have no public labels."""
    layout = "train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt"
    base = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    annotations = base / "val" / "val_annotations.txt"
    for place in (base, base / "train", annotations):
        _require(place, layout)
    names = sorted(folder.name for folder in (base / "train").iterdir() if folder.is_dir())
    number = {name: i for i, name in enumerate(names)}
    files = {name: sorted((base / "train" / name / "images").glob("*.JPEG")) for name in names}
    _refuse_empty(base / "train", [name for name in names if not files[name]], len(names))
    rows = [line.split("\t") for line in annotations.read_text().splitlines() if line.strip()]
    if not rows or any(len(row) < 2 or row[1] not in number for row in rows):
        raise UserError(f"{annotations} does not hold lines of an image and one of the {len(names)} classes in train/")
    paths = [base / "val" / "images" / row[0] for row in rows]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(paths)} validation images are missing, such as {absent[0]}; copy them again"
        )
    train = [(path, number[name]) for name in names for path in files[name]]
    return (
        _ReaderImages(_FileReader([path for path, _ in train]), [label for _, label in train], base / "train"),
        _ReaderImages(_FileReader(paths), [number[row[1]] for row in rows], base / "val"),
    )


def open_hugging_face(name: str, root: Path, splits: tuple[str, str]) -> tuple[Images, Images]:
    """(training, validation) images of a Hugging Face data set (``hfds/...``) in a local folder or the local cache."""
    needs_package("datasets", "hfds/")
    import datasets
    from timm.data.readers.reader_hfds import ReaderHfds

    images = []
    for split in splits:
        try:
            # `root` is the cache; a name that is a folder is read from there. Offline: a download is a step of its own.
            datasets.config.HF_HUB_OFFLINE = True
            reader = ReaderHfds(name.removeprefix("hfds/"), root=str(root), split=split)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"cannot read split {split} of {name} from {root} without the network: {error}") from None
        images.append(
            _ReaderImages(reader, [int(label) for label in reader.dataset[reader.label_key]], f"{name} ({split})")
        )
    return images[0], images[1]


def needs_package(package: str, what: str) -> None:
    """Refuses to go on without an optional package."""
    if find_spec(package) is None:
        raise UserError(f"reading {what} needs the package {package}: pip install {package}")


class _Classed(NamedTuple):
    """One of timm's readers with its class names: of all classes, and of each image."""

    reader: Any
    names: Sequence[str]
    of_image: Sequence[str]


def _read(place: Path) -> _Classed:
    try:
        if place.suffix == ".tar" or any(place.glob("*.tar")):
            tar = ReaderImageInTar(str(place))
            names = {i: name for name, i in tar.class_name_to_idx.items()}
            return _Classed(tar, list(names.values()), [names[int(i)] for i in tar.targets])
        reader = ReaderImageFolder(str(place))
    except (RuntimeError, OSError, EOFError, ValueError, AssertionError, tarfile.TarError) as error:
        raise UserError(f"cannot read {place}: {error}; it should hold {IMAGE_FOLDER}") from None
    names = {i: name for name, i in reader.class_to_idx.items()}
    if "" in reader.class_to_idx:
        raise UserError(f"{place} holds images outside class folders; sort them into {place}/<class>/")
    folders = sorted(folder.name for folder in place.iterdir() if folder.is_dir())
    filled = {Path(path).relative_to(place).parts[0] for path, _ in reader.samples}
    _refuse_empty(place, [name for name in folders if name not in filled], len(folders))
    return _Classed(reader, list(names.values()), [names[i] for _, i in reader.samples])


def _find_split(root: Path, split: str) -> Path:
    for name in SYNONYMS[split]:
        for place in (root / name, root / f"{name}.tar"):
            if place.exists():
                return place
    _require(root, IMAGE_FOLDER)
    raise UserError(f"{root} holds no {split} or {split}.tar; it should hold {IMAGE_FOLDER}")


def _require(place: Path, layout: str) -> None:
    if not place.exists():
        raise UserError(f"{place} does not exist; it should hold {layout}")


def _refuse_empty(place: Path, empty: Sequence[str], total: int) -> None:
    if not total:
        raise UserError(f"{place} holds no class folder")
    if empty:
        raise UserError(
            f"{len(empty)} of {total} class folders of {place} hold no image, such as {empty[0]}: complete the copy"
        )


class _PlainUnpickler(pickle.Unpickler):
    """Reads the dictionaries of text, numbers and arrays that CIFAR's files are, and nothing that could run code."""

    ALLOWED: ClassVar = {
        "dtype": np.dtype,
        "ndarray": np.ndarray,
        "_reconstruct": np.zeros(0).__reduce__()[0],
        "_frombuffer": np.zeros(0).__reduce_ex__(5)[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return self.ALLOWED[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_cifar(base: Path, names: Sequence[str], key: str) -> _ArrayImages:
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for name in names:
        _require(base / name, f"images of {base.name}")
        try:
            with (base / name).open("rb") as file:
                content = _PlainUnpickler(file, encoding="latin1").load()
            content = {k.decode() if isinstance(k, bytes) else k: value for k, value in content.items()}
            part = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            if len(part) != len(content[key]):
                raise ValueError(f"{len(part)} images and {len(content[key])} labels")
        except (pickle.UnpicklingError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"cannot read {base / name}: {error or 'it ends early'}; copy it again") from None
        pixels.append(part)
        labels.extend(int(label) for label in content[key])
    return _ArrayImages(np.concatenate(pixels), labels)
