"""The paper's data sets as lists of (image, label): VTAB-1k, FGVC, few-shot and domain-generalisation lists."""

import codecs
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from paperkit.data.pictures import read_picture
from paperkit.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# task -> (classes, group); groups: Natural, Specialized, Structured (VTAB-1k).
VTAB = {
    **{"cifar": (100, "Natural"), "caltech101": (102, "Natural"), "dtd": (47, "Natural")},
    **{"oxford_flowers102": (102, "Natural"), "oxford_iiit_pet": (37, "Natural"), "svhn": (10, "Natural")},
    **{"sun397": (397, "Natural"), "patch_camelyon": (2, "Specialized"), "eurosat": (10, "Specialized")},
    **{"resisc45": (45, "Specialized"), "diabetic_retinopathy": (5, "Specialized"), "clevr_count": (8, "Structured")},
    **{"clevr_dist": (6, "Structured"), "dmlab": (6, "Structured"), "kitti": (4, "Structured")},
    **{"dsprites_loc": (16, "Structured"), "dsprites_ori": (16, "Structured"), "smallnorb_azi": (18, "Structured")},
    "smallnorb_ele": (9, "Structured"),
}
VTAB_SPLITS = ("train800", "val200", "train800val200", "test")

# key -> (classes, folder of the images below the set's root).
FGVC = {
    "cub": (200, "images"),
    "nabirds": (555, "images"),
    "oxfordflower": (102, ""),
    "stanforddog": (120, "Images"),
    "stanfordcar": (196, ""),
}
# set -> (classes, folder of training images, folder of the others). The released spelling of the cars is kept.
FEW_SHOT = {
    "fgvc-aircraft": (100, "images", "images"),
    "food101": (101, "images", "images"),
    "oxford-flowers102": (102, "images", "images"),
    "oxford-pets": (37, "images", "images"),
    "standford-cars": (196, "", ""),
    "imagenet": (1000, "train", "val"),
}
DOMAINS = {"imagenetv2": 10_000, "imagenet-sketch": 50_889, "imagenet-adversarial": 7_500, "imagenet-rendition": 30_000}


@dataclass(frozen=True)
class ImageList:
    """Paths and labels of one split."""

    paths: list[Path]
    labels: list[int]
    classes: int

    def __len__(self) -> int:
        return len(self.paths)


class ListDataset(Dataset):
    """An image list with a transform: item i is (image, label)."""

    def __init__(self, images: ImageList, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(read_picture(self.images.paths[index])), self.images.labels[index]


def read_list(file: Path, images: Path, classes: int, name: str) -> ImageList:
    """A list file of `path label` lines, split at the last space, tab or comma; paths are relative to `images`.

    Raises:
        UserError: for a missing file, a broken line, a label outside the classes, or a missing image.
    """
    if not file.is_file():
        beside = (
            ", ".join(sorted(p.name for p in file.parent.iterdir())[:6]) if file.parent.is_dir() else "no such folder"
        )
        raise UserError(f"{name}: no list at {file} (there: {beside})")
    paths, labels = [], []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"(.*?)[ \t,;]+([0-9]{1,9})", line.strip(" \t\r"))
        if not found or not (path := re.sub(r'^"(.*)"$', r"\1", found[1])):
            raise UserError(f"{file}, line {number}: {line.strip()[:60]!r} is not 'path label'")
        label = found[2]
        if int(label) >= classes:
            raise UserError(
                f"class counts differ: {file}, line {number} has label {label}, {name} has {classes} classes"
            )
        paths.append(images / path)
        labels.append(int(label))
    return _checked(ImageList(paths, labels, classes), str(file))


def read_text(file: Path) -> str:
    """The text of a list, UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        UserError: if it is neither.
    """
    raw = file.read_bytes()
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in {encoding}: {error.reason} at byte {error.start}") from error


def _checked(images: ImageList, source: str) -> ImageList:
    if not len(images):
        raise UserError(f"{source} lists no image")
    missing = [path for path in images.paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(images)} images of {source} are missing, the first is {missing[0]}")
    return images


def vtab_split(root: str | Path, task: str, split: str) -> ImageList:
    """`root/{task}/{split}.txt`, lines `images/{split}/000000.jpg label` relative to the task's folder.

    Raises:
        UserError: unknown task, or a folder that lacks the split's file or images.
    """
    if task not in VTAB:
        raise UserError(f"no VTAB-1k task {task!r}; there are {', '.join(VTAB)}")
    folder = Path(root) / task
    if not folder.is_dir():
        raise UserError(
            f"no VTAB-1k task at {folder}; it should hold {', '.join(f'{s}.txt' for s in VTAB_SPLITS)} and images/"
        )
    if not (folder / f"{split}.txt").is_file():
        raise UserError(
            f"the VTAB-1k folder {folder} lacks the split file {split}.txt; it needs {', '.join(VTAB_SPLITS)}"
        )
    return read_list(folder / f"{split}.txt", folder, VTAB[task][0], task)


def fgvc_split(root: str | Path, key: str, split: str) -> ImageList:
    """`root/{split}.json` = {relative path: class id}; ids become 0..K-1 in sorted order.

    Raises:
        UserError: unknown set, missing or broken file, another class count, missing images.
    """
    if key not in FGVC:
        raise UserError(f"no FGVC set {key!r}; there are {', '.join(FGVC)}")
    classes, below = FGVC[key]
    file = Path(root) / f"{split}.json"
    if not file.is_file():
        raise UserError(
            f"{key}: no list at {file}; the folder should hold train.json, val.json, test.json and the images"
        )
    try:
        entries = {str(path): int(label) for path, label in json.loads(read_text(file)).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a JSON object of path: class ({error})") from error
    ids = sorted(set(entries.values()))
    if len(ids) != classes:
        raise UserError(f"class counts differ: {file} has {len(ids)} classes, {key} has {classes}")
    place = {label: index for index, label in enumerate(ids)}
    paths = [Path(root) / below / path for path in entries]
    return _checked(ImageList(paths, [place[label] for label in entries.values()], classes), str(file))


def few_shot_split(root: str | Path, name: str, split: str, shots: int = 16, seed: int = 0) -> ImageList:
    """`root/annotations/train_meta.list.num_shot_{shots}.seed_{seed}`, `val_meta.list` or `test_meta.list`.

    The released oxford-pets list of one shot holds two images a class; it is read as it is.
    """
    if name not in FEW_SHOT:
        raise UserError(f"no few-shot set {name!r}; there are {', '.join(FEW_SHOT)}")
    classes, train_folder, other_folder = FEW_SHOT[name]
    if split == "train":
        if shots not in (1, 2, 4, 8, 16) or seed not in (0, 1, 2):
            raise UserError(f"few-shot lists are of 1, 2, 4, 8 or 16 shots and seeds 0 to 2, not {shots} and {seed}")
        file = f"train_meta.list.num_shot_{shots}.seed_{seed}"
    else:
        file = f"{split}_meta.list"
    folder = train_folder if split == "train" else other_folder
    return read_list(Path(root) / "annotations" / file, Path(root) / folder, classes, name)


def domain_split(root: str | Path, name: str) -> ImageList:
    """A shifted ImageNet: `root/{name}/annotations/val_meta.list`, labels in ImageNet-1k ids."""
    if name not in DOMAINS:
        raise UserError(f"no shifted ImageNet {name!r}; there are {', '.join(DOMAINS)}")
    return read_list(Path(root) / name / "annotations" / "val_meta.list", Path(root) / name / "images", 1000, name)


def make_transform(kind: str, training: bool, size: int = 224) -> Callable[[Any], Any]:
    """Transforms of the released code.

    Args:
        kind: `direct` squeezes to `size` x `size` (VTAB-1k, training and test alike, no augmentation); `crop`
            squeezes to 8/7 of it, then a random crop and flip, or the centre (FGVC in the code); `resized_crop` is
            the random resized crop of SSF and VPT.
        training: of the training images.
    """
    end = [T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    bicubic = InterpolationMode.BICUBIC
    larger = T.Resize((size * 8 // 7, size * 8 // 7), bicubic)
    if kind == "direct":
        return T.Compose([T.Resize((size, size), bicubic), *end])
    if kind == "resized_crop" and training:
        return T.Compose([T.RandomResizedCrop(size, interpolation=bicubic), T.RandomHorizontalFlip(), *end])
    if kind not in ("crop", "resized_crop"):
        raise UserError(f"no transform {kind!r}; there are direct, crop and resized_crop")
    middle = [T.RandomCrop(size), T.RandomHorizontalFlip()] if training else [T.CenterCrop(size)]
    return T.Compose([larger, *middle, *end])
