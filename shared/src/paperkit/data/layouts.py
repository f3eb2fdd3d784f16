"""Where image data sets lie on disk, read so that whatever is missing or broken is named in one line.

A data set answers `images[i]` with a PIL image in RGB and a label, and `images.labels` with all labels. Nothing is
downloaded, and nothing that cannot be decoded is skipped: a data set with silently fewer images is another data set.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image
from timm.data import ImageNetInfo
from timm.data.readers.reader_image_in_tar import extract_tarinfos
from timm.utils.misc import natural_key

from paperkit.data.pictures import Picture, read_picture
from paperkit.errors import UserError

IMAGE_FOLDER = "train/<class>/*.JPEG and val/<class>/*.JPEG, or train.tar and val.tar with such folders"
SPLITS = {"train": (("train", "training"),), "val": (("val", "validation", "valid"), ("test", "testing"))}
ENDINGS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".avif",
        ".jp2",
        ".ppm",
        ".pgm",
    ]
)
#: Pictures as well, which cannot be read: a folder that holds one is refused, not read without it.
UNREADABLE = {".heic": "HEIC", ".heif": "HEIF", ".svg": "SVG", ".jxl": "JPEG XL", ".psd": "PSD", ".dng": "DNG"}
NO_CLASSES = frozenset(["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__pycache__"])


class Images(Protocol):
    """A data set with random access."""

    labels: Sequence[int]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...

    def __len__(self) -> int: ...


class _Source(Protocol):
    """Where pictures come from: each with the name that an error calls it."""

    def __getitem__(self, index: int) -> tuple[Picture, str]: ...


class _Pictures:
    """The pictures of a source with their labels."""

    def __init__(self, source: _Source, labels: Sequence[int]) -> None:
        self.source, self.labels = source, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_picture(*self.source[index]), int(self.labels[index])


class _Files:
    """Picture files of a folder."""

    def __init__(self, paths: Sequence[str | Path], place: Path) -> None:
        self.paths, self.place = paths, place

    def __getitem__(self, index: int) -> tuple[Picture, str]:
        return self.paths[index], f"{self.paths[index]} of {self.place}"


class _Member(NamedTuple):
    """A file inside a tar file, which may lie in another one."""

    tar: Path
    start: int
    size: int
    name: str


class _Members:
    """Picture files of tar files. Nothing stays open: worker processes would share the position in an open file."""

    def __init__(self, members: Sequence[_Member]) -> None:
        self.members = members

    def __getitem__(self, index: int) -> tuple[Picture, str]:
        tar, start, size, name = self.members[index]
        try:
            with tar.open("rb") as file:
                file.seek(start)
                return file.read(size), f"{name} of {tar}"
        except OSError as error:
            raise UserError(f"cannot read {tar}: {error.strerror}") from None


class _Rows:
    """Pictures of a Hugging Face data set, through timm's reader."""

    def __init__(self, reader: Any, place: str) -> None:
        self.reader, self.place = reader, place

    def __getitem__(self, index: int) -> tuple[Picture, str]:
        name = self.reader.filename(index, absolute=True) or f"number {index}"
        try:
            with self.reader[index][0] as stream:
                return stream.read(), f"{name} of {self.place}"
        except (OSError, AssertionError) as error:
            raise UserError(f"cannot read image {name} of {self.place}: {error or 'the row is empty'}") from None


@cache
def imagenet_classes() -> list[str]:
    """The 1000 WordNet ids of ImageNet-1k, by class number."""
    return ImageNetInfo("imagenet-1k").label_names()


def folder_classes(root: Path) -> list[str]:
    """Names of the classes of ImageNet's layout, sorted: the folders directly beneath the training split.

    No picture is opened; tar files are looked through once.

    Raises:
        UserError: if there is no training split, or no class in it.
    """
    place = _find_split(root, "train")
    return _class_folders(place) if _is_folder(place) else _read(place).names


def class_order(names: Sequence[str], num_classes: int | None = None, whose: str | Path = "the folder") -> list[str]:
    """Names by class number: alphabetical, or ImageNet's own order for a part of its classes under a head of 1000.

    Args:
        names: see `folder_classes`.
        num_classes: outputs of the head; None for as many as there are names.
        whose: what an error calls their folder.

    Raises:
        UserError: if there are more names than outputs.
    """
    official = imagenet_classes()
    if (num_classes or len(names)) == len(official) and set(names) <= set(official):
        return official
    if num_classes is not None and len(names) > num_classes:
        raise UserError(f"{whose} has {len(names)} classes, but num_classes is {num_classes}: {some(names)}")
    return sorted(names)


def open_image_folder(root: Path, names: Sequence[str] | None = None) -> tuple[Images, Images]:
    """(training, validation) images of ImageNet's layout, as folders or tar files.

    The class of an image is the folder directly beneath the split, however deep the image lies. Hidden files and
    folders are neither images nor classes.

    Args:
        root: holds `train` or `training`, and `val`, `validation`, `valid` or, without those, `test`.
        names: of all classes by number; None for `class_order` of the folder's own.

    Raises:
        UserError: if something is missing or broken, or the splits are not of the same classes.
    """
    places = [_find_split(root, split) for split in ("train", "val")]
    splits = [_read(place) for place in places]
    train, val = (split.names for split in splits)
    if train != val:
        odd = [
            f"{some(only)} only in {place.name}"
            for only, place in ((sorted(set(train) - set(val)), places[0]), (sorted(set(val) - set(train)), places[1]))
            if only
        ]
        raise UserError(
            f"{places[0]} has {len(train)} classes and {places[1]} has {len(val)}; {', '.join(odd)}: complete the copy"
        )
    number = {name: i for i, name in enumerate(names or class_order(train))}
    unknown = [name for name in train if name not in number]
    if unknown:
        raise UserError(f"{places[0]} has classes that are not among the {len(number)} expected: {some(unknown)}")
    train_images, val_images = (_Pictures(split.source, [number[name] for name in split.of_image]) for split in splits)
    return train_images, val_images


def some(names: Sequence[str]) -> str:
    """The first three names, for an error."""
    return ", ".join(islice(names, 3)) + (", ..." if len(names) > 3 else "")


def open_tiny_imagenet(root: Path) -> tuple[Images, Images]:
    """(training, validation) images of TinyImageNet as it is distributed; the test images have no public labels."""
    layout = "train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt"
    base = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    annotations = base / "val" / "val_annotations.txt"
    for place in (base, base / "train", annotations):
        require(place, layout)
    names = _class_folders(base / "train")
    number = {name: i for i, name in enumerate(names)}
    files = {
        name: sorted(path for path in (base / "train" / name / "images").glob("*.JPEG") if not _hidden(path.name))
        for name in names
    }
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
        _Pictures(_Files([path for path, _ in train], base / "train"), [label for _, label in train]),
        _Pictures(_Files(paths, base / "val"), [number[row[1]] for row in rows]),
    )


def open_hugging_face(name: str, root: Path, splits: tuple[str, str]) -> tuple[Images, Images]:
    """(training, validation) images of a Hugging Face data set (`hfds/...`) in a local folder or the local cache."""
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
        labels = [int(label) for label in reader.dataset[reader.label_key]]
        images.append(_Pictures(_Rows(reader, f"{name} ({split})"), labels))
    return images[0], images[1]


def needs_package(package: str, what: str) -> None:
    """Refuses to go on without an optional package."""
    if find_spec(package) is None:
        raise UserError(f"reading {what} needs the package {package}: pip install {package}")


class _Split(NamedTuple):
    """The pictures of one split, its class names in alphabetical order, and the class of each picture."""

    source: _Source
    names: list[str]
    of_image: list[str]


def _read(place: Path) -> _Split:
    if _is_folder(place):
        return _read_folder(place)
    changed = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in _tar_files(place)]
    return _read_tars(place, tuple(changed))


def _is_folder(place: Path) -> bool:
    return place.is_dir() and not _tar_files(place)


def _tar_files(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("*.tar") if not _hidden(path.name)) if place.is_dir() else [place]


def _read_folder(place: Path) -> _Split:
    names = _class_folders(place)
    found = [(path, name) for name in names for path in _pictures_beneath(place / name)]
    filled = {name for _, name in found}
    _refuse_empty(place, [name for name in names if name not in filled], len(names))
    found.sort(key=lambda pair: natural_key(pair[0]))
    return _Split(_Files([path for path, _ in found], place), names, [name for _, name in found])


def _class_folders(place: Path) -> list[str]:
    """Names of the visible folders in `place`, sorted.

    Raises:
        UserError: if there is none, or if images lie beside them.
    """
    try:
        with os.scandir(place) as entries:
            visible = [entry for entry in entries if not _hidden(entry.name)]
    except OSError as error:
        raise UserError(f"cannot read {place}: {error.strerror}; it should hold {IMAGE_FOLDER}") from None
    for entry in visible:
        _refuse_broken_link(entry)
    names = sorted(entry.name for entry in visible if entry.is_dir())
    if any(_ending(entry.name) in ENDINGS and not entry.is_dir() for entry in visible):
        raise UserError(f"{place} holds images outside class folders; sort them into {place}/<class>/")
    if not names:
        raise UserError(f"{place} holds no class folder; the layout is {IMAGE_FOLDER}")
    return names


def _pictures_beneath(folder: Path | str, linked: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of the picture files in `folder` and in the folders within, links followed.

    Args:
        linked: where the links led through which `folder` was reached.
    """
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not _hidden(entry.name)]
    for entry in visible:
        if entry.is_dir():
            target = os.path.realpath(entry.path) if entry.is_symlink() else ""
            if target and (target in linked or (os.path.realpath(folder) + os.sep).startswith(target + os.sep)):
                raise UserError(f"{entry.path} is a link to {target}, in which it lies itself; remove it")
            yield from _pictures_beneath(entry.path, linked | {target} if target else linked)
            continue
        _refuse_broken_link(entry)
        ending = _ending(entry.name)
        if ending in UNREADABLE:
            raise UserError(f"{entry.path}: {UNREADABLE[ending]} is not read; save it as JPEG or PNG, or remove it")
        if ending in ENDINGS:
            yield entry.path


def _refuse_broken_link(entry: os.DirEntry[str]) -> None:
    meant = _ending(entry.name) in {"", *ENDINGS}  # an image, or a folder of them
    if meant and entry.is_symlink() and not os.path.exists(entry.path):
        raise UserError(f"{entry.path} is a link to {os.readlink(entry.path)}, which does not exist: complete the copy")


def _hidden(name: str) -> bool:
    """What systems and tools leave in folders: `.DS_Store`, `._x.jpg`, `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith(".") or name in NO_CLASSES


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


@cache
def _read_tars(place: Path, files: tuple[tuple[Path, int, int], ...]) -> _Split:
    """A tar file with class folders (also inside a common folder), or tar files, one for each class.

    Args:
        files: paths with time and size: a tar file is looked through once in a process, unless it changes.
    """
    folder = place if place.is_dir() else place.parent
    try:
        # timm notes what it found in large files beside them, where it may.
        noted = None if os.access(folder, os.W_OK) else False
        found = extract_tarinfos(str(place), extensions=set(ENDINGS), cache_tarinfo=noted)[0]
    except (RuntimeError, OSError, EOFError, ValueError, AssertionError, tarfile.TarError) as error:
        why = "it holds no image" if "not enough values" in str(error) else error
        raise UserError(f"cannot read {place}: {why}; it should hold {IMAGE_FOLDER}") from None
    members, inside = [], []
    for info, outer, inner in found:
        folders = [part for part in info.path.split("/")[:-1] if part != "."]
        if any(_hidden(part) for part in (*folders, info.path.rpartition("/")[2])):
            continue
        tar = folder / outer if outer else place
        within = f"{inner.name}/" if inner else ""
        start = info.offset_data + (inner.offset_data if inner else 0)
        members.append(_Member(tar, start, info.size, within + info.path))
        inside.append((Path(inner.name).stem if inner else tar.stem if outer else "", tuple(folders)))
    of_image = _classes_in_tars(inside, place)
    return _Split(_Members(members), sorted(set(of_image)), of_image)


def _classes_in_tars(inside: Sequence[tuple[str, tuple[str, ...]]], place: Path) -> list[str]:
    """The class of each image: the tar file of the class, or in a single one the first folder that tells images apart.

    Args:
        inside: of each image the name of its class's tar file, if it may be one, and its folders in it.
        place: what an error names.

    Raises:
        UserError: for an image without a class, or if the tar files as well as the folders in one may be the classes.
    """
    if len({tar for tar, _ in inside}) == 1 and any(folders for _, folders in inside):
        first, last = min(folders for _, folders in inside), max(folders for _, folders in inside)
        same = [one == other for one, other in zip(first, last, strict=False)]
        shared = (*same, False).index(False)  # folders that the alphabetical extremes share are shared by all
        level = shared if all(len(folders) > shared for _, folders in inside) else 0
        inside = [("".join(folders[level : level + 1]), ()) for _, folders in inside]
    within: dict[str, set[str]] = {}
    for tar, folders in inside:
        within.setdefault(tar, set()).update(folders[:1])
    for tar, found in within.items():
        if len(found) > 1:
            raise UserError(
                f"{place} holds several tar files, and {tar} in it several folders ({some(sorted(found))}): which are "
                "the classes? Pack one tar file for each class without folders, or a single one with a folder for each"
            )
    if not all(tar for tar, _ in inside):
        raise UserError(f"{place} holds images outside class folders; sort them into <class>/")
    return [tar for tar, _ in inside]


def _find_split(root: Path, split: str) -> Path:
    """The folder or tar file of a split, by any of its names in any case.

    Raises:
        UserError: if there is none, or more than one and none says which is meant.
    """
    require(root, IMAGE_FOLDER)
    try:
        entries = [entry for entry in sorted(root.iterdir()) if not _hidden(entry.name)]
    except OSError as error:
        raise UserError(f"cannot read {root}: {error.strerror}; it should hold {IMAGE_FOLDER}") from None
    for names in SPLITS[split]:
        for fitting in (
            [entry for entry in entries if entry.name.lower() in names and entry.is_dir()],
            [entry for entry in entries if entry.name.lower() in {f"{name}.tar" for name in names}],
        ):
            if len(fitting) > 1:
                both = " and ".join(entry.name for entry in fitting)
                raise UserError(f"{root} holds {both}, which both may be the {split} split; leave one")
            if fitting:
                return fitting[0]
    raise UserError(f"{root} holds no {split} or {split}.tar; it should hold {IMAGE_FOLDER}")


def require(place: Path, layout: str) -> None:
    """Refuses a place that is not there, and says what it should hold."""
    if not place.exists():
        raise UserError(f"{place} does not exist; it should hold {layout}")


def _refuse_empty(place: Path, empty: Sequence[str], total: int) -> None:
    if not total:
        raise UserError(f"{place} holds no class folder")
    if empty:
        raise UserError(
            f"{len(empty)} of {total} class folders of {place} hold no image, such as {empty[0]}: complete the copy"
        )
