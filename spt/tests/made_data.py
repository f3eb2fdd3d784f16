"""Data folders of the right layout with a few small pictures."""

import json
from pathlib import Path

from PIL import Image

from spt.training.image_lists import DOMAINS, FEW_SHOT, FGVC, VTAB


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 20), ((37 * number) % 256, (91 * number) % 256, (53 * number) % 256)).save(path)


def make_vtab(root: Path, task: str, train: int = 10) -> None:
    """Lists and images of one task."""
    folder, classes = root / task, VTAB[task][0]
    for split, count in (("train800", train), ("val200", 4), ("test", 6)):
        lines = []
        for number in range(count):
            _picture(folder / "images" / split / f"{number:06d}.jpg", number)
            lines.append(f"images/{split}/{number:06d}.jpg {number % classes}")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    both = (folder / "train800.txt").read_text() + (folder / "val200.txt").read_text()
    (folder / "train800val200.txt").write_text(both)


def make_fgvc(root: Path, key: str) -> None:
    """JSON lists with every class once; ids are not consecutive."""
    classes, below = FGVC[key]
    for split in ("train", "val", "test"):
        entries = {}
        for number in range(classes):
            name = f"{split} {number}.jpg"
            _picture(root / below / name, number)
            entries[name] = 3 * number + 1
        (root / f"{split}.json").write_text(json.dumps(entries))


def make_few_shot(root: Path, name: str) -> None:
    """Lists of 16 shots and seed 0, and of the evaluation images; names with spaces."""
    classes, train_folder, other_folder = FEW_SHOT[name]
    lists = {
        "train_meta.list.num_shot_16.seed_0": train_folder,
        "val_meta.list": other_folder,
        "test_meta.list": other_folder,
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for file, below in lists.items():
        lines = []
        for number in range(6):
            path = f"a b/{file[:4]} {number}.jpg"
            _picture(root / below / path, number)
            lines.append(f"{path} {number % classes}")
        (root / "annotations" / file).write_text("\n".join(lines) + "\n")


def make_domains(root: Path) -> None:
    """The four shifted ImageNets."""
    for name in DOMAINS:
        (root / name / "annotations").mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(3):
            _picture(root / name / "images" / f"{number}.jpg", number)
            lines.append(f"{number}.jpg {number + 5}")
        (root / name / "annotations" / "val_meta.list").write_text("\n".join(lines) + "\n")


def make_ade20k(root: Path, classes: int = 5, training: int = 6, validation: int = 3) -> None:
    """Scenes of two halves: the class follows from the colour; the border row is unlabelled (0)."""
    for split, count in (("training", training), ("validation", validation)):
        for number in range(count):
            height, width = 40 + 4 * number, 52
            picture, labels = Image.new("RGB", (width, height)), Image.new("L", (width, height))
            for side in (0, 1):
                label = 1 + (number + 2 * side) % classes
                box = (side * width // 2, 1, (side + 1) * width // 2, height)
                picture.paste((40 * label, 250 - 40 * label, 90), box)
                labels.paste(label, box)
            for kind, made, suffix in (("images", picture, "jpg"), ("annotations", labels, "png")):
                folder = root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                made.save(folder / f"ADE_{number:08d}.{suffix}")
