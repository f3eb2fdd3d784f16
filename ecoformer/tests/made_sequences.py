"""Made data of the Long Range Arena's tasks, in the layouts that they come in."""

import random
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ecoformer.training.listops import SHORT, examples
from paperkit.testing.made_images import make_cifar


def make_task(root: Path, task: str, count: int = 20) -> Path:
    """A folder of `count` training samples or a few more."""
    made = {"listops": make_listops, "text": make_texts, "retrieval": make_pairs, "pathfinder": make_pathfinder}
    root.mkdir(parents=True, exist_ok=True)
    if task == "image":
        return make_cifar(root, per_file=10)
    return made[task](root, count)


def make_listops(root: Path, count: int = 20) -> Path:
    source = examples(0, SHORT)
    for split in ("train", "val", "test"):
        lines = [f"{e.source}\t{e.target}\n" for e in islice(source, count)]
        (root / f"basic_{split}.tsv").write_text("Source\tTarget\n" + "".join(lines))
    return root


def make_texts(root: Path, count: int = 20, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """IMDB's layout; without splits, one folder of pos and neg."""
    draw = random.Random(0)
    for split in splits or ("",):
        for label, word in (("pos", "good "), ("neg", "bad ")):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count // 2):
                (folder / f"{i}_7.txt").write_text(word * draw.randint(1, 12))
    return root


def make_pairs(root: Path, count: int = 20) -> Path:
    for split in ("train", "eval", "test"):
        lines = [f"{i % 2}.0\tP{i}\tQ{i}\tsome text {i}\t{'some' if i % 2 else 'another'} text\n" for i in range(count)]
        (root / f"new_aan_pairs.{split}.tsv").write_text("".join(lines))
    return root


def make_pathfinder(root: Path, count: int = 20) -> Path:
    """Noise in place of paths; one image is empty, as some of the arena's are."""
    folder = root / "curv_contour_length_14"
    (folder / "metadata").mkdir(parents=True)
    (folder / "imgs" / "0").mkdir(parents=True)
    generator, lines = np.random.default_rng(0), []
    for i in range(count + 6):
        path = folder / "imgs" / "0" / f"sample_{i}.png"
        Image.fromarray(generator.integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
        lines.append(f"imgs/0 sample_{i}.png {i} {i % 2} 1.8 6\n")
    (folder / "imgs" / "0" / "sample_3.png").write_bytes(b"")
    (folder / "metadata" / "0.npy").write_text("".join(lines))
    return root
