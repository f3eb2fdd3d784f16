"""The five tasks of the Long Range Arena as batches of tokens: generated, or read from the layouts that they come in.

A token is a byte, a pixel or a symbol, plus 1; 0 is padding, to the longest sequence of the batch.

Shapes: B batch, N tokens.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ecoformer.training.listops import CLOSE, VOCABULARY, ListOpsOptions, encode, examples
from ecoformer.training.pathfinder import draw_image, setting
from paperkit.data.cifar import open_cifar
from paperkit.data.resumable import Draw, EvenSampler, ResumableData, seeded_loader
from paperkit.data.seeding import seed_of
from paperkit.errors import UserError
from paperkit.files.arrays import read_npz
from paperkit.files.atomic import atomic_file

Array = np.ndarray
Batch = tuple[Tensor, Tensor]
Splits = dict[str, "Rows"]
TaskName = Literal["listops", "text", "retrieval", "image", "pathfinder"]
SPLITS = ("train", "val", "test")
GREY = np.array([0.2989, 0.5870, 0.1140])
"""Weights of red, green and blue (TensorFlow's, which the arena uses)."""
PATHFINDER_FOLDERS = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
CHUNK = 1000
"""Generated Pathfinder images in one file."""


class Task(NamedTuple):
    """Symbols (padding among them), classes, and whether a sample is a pair of texts."""

    vocabulary: int
    classes: int
    pair: bool = False


TASKS = {
    "listops": Task(len(VOCABULARY) + 1, 10),
    "text": Task(257, 2),
    "retrieval": Task(257, 2, True),
    "image": Task(257, 10),
    "pathfinder": Task(257, 2),
}


class Rows(Protocol):
    """Samples of a split: one or two sequences of bytes each, and their labels (n,)."""

    labels: Array

    def __getitem__(self, index: int) -> tuple[Array, ...]: ...


class InMemory:
    """Sequences that are there already."""

    def __init__(self, sequences: Sequence[Array] | Array, labels: Sequence[int] | Array) -> None:
        self.sequences, self.labels = sequences, np.asarray(labels, dtype=np.int64)

    def __getitem__(self, index: int) -> tuple[Array, ...]:
        return (self.sequences[index],)


class Files:
    """One file a sample, read when it is asked for."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], read: Callable[[Path], Array]) -> None:
        self.paths, self.labels, self.read = paths, np.asarray(labels, dtype=np.int64), read

    def __getitem__(self, index: int) -> tuple[Array, ...]:
        return (self.read(self.paths[index]),)


class PairLines:
    """Lines `label, id, id, text, text` of a tab-separated file, read when they are asked for.

    Raises:
        UserError: a line of another form, or a file that ends early.
    """

    def __init__(self, path: Path) -> None:
        self.path, starts, labels, place = path, [], [], 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                _whole(path, line.endswith(b"\n"))
                label, *rest = line.split(b"\t")
                if len(rest) != 4 or label.strip() not in (b"0", b"1", b"0.0", b"1.0"):
                    raise UserError(f"{path} line {number} is not label, id, id, text, text between tabs")
                starts.append(place)
                labels.append(int(float(label)))
                place += len(line)
        _whole(path, bool(starts))
        self.starts, self.labels = np.array(starts), np.array(labels)

    def __getitem__(self, index: int) -> tuple[Array, ...]:
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            *_, one, two = file.readline().rstrip(b"\r\n").split(b"\t")
        return np.frombuffer(one, np.uint8), np.frombuffer(two, np.uint8)


class SequenceData(ResumableData, pl.LightningDataModule):
    """Batches of tokens (B, N), of pairs (B, 2, N), and labels (B,). Runs resume exactly, also within an epoch.

    Args:
        task: listops, text, retrieval, image or pathfinder.
        root: folder of the data; with `source: generator` where they are kept once made.
        source: `files`, or for listops and pathfinder `generator`.
        max_length: tokens of a sequence at most; the rest is cut off.
        batch_size, eval_batch_size: samples of a step in a process. num_workers: processes that read.
        seed: of the order. generator_seed: of what is made.
        samples: train, val, test of generated data; all others are as their files say.
        max_depth, max_args, min_tokens, max_tokens: of ListOps trees; a kept one lies strictly between the lengths.
        difficulty: of Pathfinder: easy, intermediate, hard; generated also relaxed (small, for tests).
    """

    def __init__(
        self,
        task: TaskName = "listops",
        root: str = "data/lra/listops",
        source: Literal["files", "generator"] = "files",
        max_length: int = 2000,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        generator_seed: int = 0,
        samples: tuple[int, int, int] = (96000, 2000, 2000),
        max_depth: int = 10,
        max_args: int = 10,
        min_tokens: int = 500,
        max_tokens: int = 2000,
        difficulty: str = "hard",
    ) -> None:
        super().__init__()
        if source == "generator" and task not in ("listops", "pathfinder"):
            raise UserError(f"task {task} has no generator; give its files with data.root")
        if max_length < 1 or min(samples) < 1:
            raise UserError(f"max_length {max_length} and samples {list(samples)} must be 1 at least")
        self.task, self.root, self.source, self.max_length = task, Path(root), source, max_length
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.seed, self.generator_seed = num_workers, seed, generator_seed
        self.samples, self.difficulty = tuple(samples), difficulty
        self.trees = ListOpsOptions(max_depth, max_args, min_tokens, max_tokens) if task == "listops" else None
        if task == "pathfinder" and (source == "generator" or difficulty not in PATHFINDER_FOLDERS):
            setting(difficulty)
        self.splits: Splits | None = None

    @property
    def of_task(self) -> Task:
        """Symbols and classes."""
        return TASKS[self.task]

    def setup(self, stage: str | None = None) -> None:
        """Opens, or makes, all three splits.

        Raises:
            UserError: something is missing or broken; the line names the path and what should be there.
        """
        if self.splits is None:
            read: dict[str, Callable[[], Splits]] = {
                "listops": self._listops, "text": self._text, "retrieval": self._retrieval, "image": self._image,
                "pathfinder": self._pathfinder,
            }  # fmt: skip
            self.splits = read[self.task]()

    def split(self, name: str) -> Rows:
        """Samples of `train`, `val` or `test`."""
        self.setup()
        assert self.splits is not None
        return self.splits[name]

    def majority_rate(self, name: str = "test") -> float:
        """Share of the commonest class: what an answer that looks at nothing gets."""
        counts = np.bincount(self.split(name).labels)
        return float(counts.max() / counts.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of one process and epoch."""
        return len(self.split("train").labels) // (self.batch_size * self._rank_and_world()[1])

    def train_dataloader(self) -> DataLoader[Batch]:
        rows = self.split("train")
        sampler = self.train_sampler(len(rows.labels), self.seed, self.batch_size)
        return seeded_loader(Batches(rows, self.max_length), sampler, self.num_workers, torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader[Batch]:
        rows = self.split("val")
        sampler = self.eval_sampler(len(rows.labels), self.eval_batch_size)
        return seeded_loader(Batches(rows, self.max_length), sampler, self.num_workers, torch.cuda.is_available())

    def alone(self, name: str) -> DataLoader[Batch]:
        """A whole split in order, for one process, however many train."""
        rows = self.split(name)
        sampler = EvenSampler(len(rows.labels), batch_size=self.eval_batch_size)
        return seeded_loader(Batches(rows, self.max_length), sampler, self.num_workers)

    def _listops(self) -> Splits:
        folder = self.root
        if self.source == "generator":
            assert self.trees is not None
            folder = write_listops(folder, self.trees, self.samples, self.generator_seed)
        return {split: read_listops(_only(folder, f"*_{split}.tsv"), self.max_length) for split in SPLITS}

    def _text(self) -> Splits:
        root = self.root / "aclImdb" if (self.root / "aclImdb").is_dir() else self.root
        if not (root / "train").is_dir():
            paths, labels = _text_files(root)
            order = np.random.default_rng(seed_of(0)).permutation(len(paths))  # the split is not the run seed's affair
            return {
                split: Files([paths[i] for i in part], [labels[i] for i in part], _bytes_of)
                for split, part in zip(SPLITS, _in_order(order), strict=True)
            }
        parts = {split: Files(*_text_files(root / split), _bytes_of) for split in ("train", "test")}
        # IMDB has no validation texts; the arena validates on the test texts.
        val = Files(*_text_files(root / "val"), _bytes_of) if (root / "val").is_dir() else parts["test"]
        return {"train": parts["train"], "val": val, "test": parts["test"]}

    def _retrieval(self) -> Splits:
        names = {"train": "train", "val": "eval", "test": "test"}
        return {split: PairLines(_only(self.root, f"*.{name}.tsv")) for split, name in names.items()}

    def _image(self) -> Splits:
        train, test = (
            InMemory(np.stack([_grey(picture) for picture, _ in images]), [label for _, label in images])
            for images in map(_each, open_cifar(self.root, "cifar10"))
        )
        kept = 9 * len(train.labels) // 10
        parts = (slice(None, kept), slice(kept, None))
        fit, val = (InMemory(train.sequences[part], train.labels[part]) for part in parts)
        return {"train": fit, "val": val, "test": test}

    def _pathfinder(self) -> Splits:
        if self.source == "generator":
            workers = self.num_workers if self._rank_and_world()[0] == 0 else 0
            images, labels = made_pathfinder(
                self.root, self.difficulty, sum(self.samples), self.generator_seed, workers
            )
            ends = np.cumsum((0, *self.samples))
            return {
                split: InMemory(images[a:b].reshape(b - a, -1), labels[a:b])
                for split, a, b in zip(SPLITS, ends[:-1], ends[1:], strict=True)
            }
        paths, marks = _pathfinder_files(self.root, self.difficulty)
        return {
            split: Files([paths[i] for i in part], [marks[i] for i in part], _pixels_of)
            for split, part in zip(SPLITS, _in_order(np.arange(len(paths))), strict=True)
        }


class Batches(Dataset[Batch]):
    """Lists of draws as padded batches."""

    def __init__(self, rows: Rows, max_length: int) -> None:
        self.rows, self.max_length = rows, max_length

    def __len__(self) -> int:
        return len(self.rows.labels)

    def __getitem__(self, draws: Sequence[Draw]) -> Batch:
        samples = [[part[: self.max_length] for part in self.rows[draw.index]] for draw in draws]
        longest = max(1, max(len(part) for sample in samples for part in sample))
        tokens = np.zeros((len(samples), len(samples[0]), longest), dtype=np.int64)
        for i, sample in enumerate(samples):
            for j, part in enumerate(sample):
                tokens[i, j, : len(part)] = part.astype(np.int64) + 1
        shaped = tokens if tokens.shape[1] > 1 else tokens[:, 0]
        return torch.from_numpy(shaped), torch.from_numpy(self.rows.labels[[draw.index for draw in draws]])


def write_listops(root: Path, options: ListOpsOptions, samples: Sequence[int], seed: int) -> Path:
    """The folder in `root` with generated trees in the arena's own files; made if it is not there.

    Duplicates are left out over all splits, which take the trees in the order of acceptance.
    """
    o = options
    name = f"depth{o.max_depth}_args{o.max_args}_{o.min_length}to{o.max_length}_seed{seed}_" + "_".join(
        map(str, samples)
    )
    folder = root / name
    files = {split: folder / f"basic_{split}.tsv" for split in SPLITS}
    if all(file.is_file() for file in files.values()):
        return folder
    print(f"writing {sum(samples)} ListOps examples to {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    made = examples(seed, options)
    for count, path in zip(samples, files.values(), strict=True):
        with atomic_file(path) as file:
            file.write(b"Source\tTarget\n")
            for example in islice(made, count):
                file.write(f"{example.source}\t{example.target}\n".encode())
    return folder


def read_listops(path: Path, max_length: int) -> InMemory:
    """The arena's file: a heading, then a tree in brackets and its value in each line.

    Raises:
        UserError: another heading, a line of another form, or a file that ends early.
    """
    sequences, labels = [], []
    with path.open(encoding="ascii", errors="replace") as file:
        if file.readline().split() != ["Source", "Target"]:
            raise UserError(f"{path} does not begin with the heading Source, Target")
        for number, line in enumerate(file, 2):
            _whole(path, line.endswith("\n"))
            source, _, target = line.rstrip("\n").partition("\t")
            if not (target.isdigit() and len(target) == 1):
                raise UserError(f"{path} line {number} is not a tree and its value, a digit, with a tab between")
            words = source.replace("(", " ").replace(")", " ").replace("]", f" {CLOSE} ").split()[:max_length]
            try:
                sequences.append(np.array(encode(" ".join(words)), dtype=np.uint8) - np.uint8(1))
            except UserError as error:
                raise UserError(f"{path} line {number}: {error}") from None
            labels.append(int(target))
    _whole(path, bool(labels))
    return InMemory(sequences, labels)


def made_pathfinder(root: Path, difficulty: str, count: int, seed: int, workers: int) -> tuple[Array, Array]:
    """Generated images (count, side, side) and labels (count,), kept in `root` by the thousand.

    Image i depends on the seed and i alone, so that an interrupted making goes on, and a larger set holds a smaller.
    """
    folder = root / f"pathfinder_{difficulty}_seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [(folder, difficulty, seed, start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    wanting = [chunk for chunk in chunks if not _chunk_file(*chunk).is_file()]
    if wanting:
        print(f"drawing {sum(c[4] - c[3] for c in wanting)} Pathfinder images in {folder}", flush=True)
    if workers > 1 and len(wanting) > 1:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(_draw_chunk, wanting))
    else:
        for chunk in wanting:
            _draw_chunk(chunk)
    contents = [read_npz(_chunk_file(*chunk)) for chunk in chunks]
    return np.concatenate([c["images"] for c in contents]), np.concatenate([c["labels"] for c in contents])


def _chunk_file(folder: Path, difficulty: str, seed: int, start: int, end: int) -> Path:
    return folder / f"{start:06d}_{end:06d}.npz"


def _draw_chunk(chunk: tuple[Path, str, int, int, int]) -> None:
    _, difficulty, seed, start, end = chunk
    options = setting(difficulty)
    made = [draw_image(options, np.random.default_rng([seed, i])) for i in range(start, end)]
    with atomic_file(_chunk_file(*chunk)) as file:
        np.savez(file, images=np.stack([image for image, _ in made]), labels=np.array([label for _, label in made]))


def _whole(path: Path, is_so: bool) -> None:
    if not is_so:
        raise UserError(f"{path} is empty or ends within a line; copy it again")


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern)) if root.is_dir() else []
    if len(found) != 1:
        what = f"holds {len(found)} files {pattern}" if root.is_dir() else "is missing"
        raise UserError(f"{root} {what}; it should hold one {pattern}")
    return found[0]


def _text_files(folder: Path) -> tuple[list[Path], list[int]]:
    """Texts of `neg` (0) and `pos` (1), each folder in order of the names."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(("neg", "pos")):
        place = folder / name
        entries = sorted(os.scandir(place), key=lambda e: e.name) if place.is_dir() else []
        texts = [e for e in entries if e.is_file() and not e.name.startswith(".")]
        if not texts:
            raise UserError(f"{place} holds no texts; {folder} should hold text files in both pos and neg")
        empty = next((e.path for e in texts if not e.stat().st_size), None)
        if empty:
            raise UserError(f"{empty} is empty; copy it again")
        paths += [Path(e.path) for e in texts]
        labels += [label] * len(texts)
    return paths, labels


def _pathfinder_files(root: Path, difficulty: str) -> tuple[list[Path], list[int]]:
    """The arena's images in the order of their metadata; files without content, which its release has, are left out."""
    inside = root / PATHFINDER_FOLDERS.get(difficulty, difficulty)
    base = inside if inside.is_dir() else root
    lists = sorted((base / "metadata").glob("*.npy"), key=lambda p: (len(p.name), p.name))
    if not lists:
        raise UserError(f"{base} holds no metadata/*.npy (lines of text); it should hold them, and imgs/ beside")
    paths, labels = [], []
    for file in lists:
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            words = line.split(" ")
            if len(words) < 4 or words[3] not in ("0", "1"):
                raise UserError(f"{file} line {number} is not folder, file, number, label (0 or 1)")
            path = base / words[0] / words[1]
            if not path.is_file():
                raise UserError(f"{path} is missing, though {file.name} lists it; complete the copy")
            if path.stat().st_size:
                paths.append(path)
                labels.append(int(words[3]))
    if len(paths) < 10:
        raise UserError(f"{base} holds {len(paths)} images; a tenth of them tests, so 10 are needed at least")
    return paths, labels


def _in_order(order: Array) -> tuple[Array, Array, Array]:
    """80, 10 and 10 per cent."""
    first, second = 8 * len(order) // 10, 9 * len(order) // 10
    if not 0 < first < second < len(order):
        raise UserError(f"{len(order)} samples are too few to be split 80 : 10 : 10; 10 are needed at least")
    return order[:first], order[first:second], order[second:]


def _bytes_of(path: Path) -> Array:
    return np.frombuffer(path.read_bytes(), np.uint8)


def _pixels_of(path: Path) -> Array:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"), dtype=np.uint8).reshape(-1)
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {error}; copy it again") from None


def _each(images: Any) -> list[tuple[Any, int]]:
    return [images[i] for i in range(len(images))]


def _grey(picture: Any) -> Array:
    """(H W,) of an RGB picture, cut to whole numbers as the arena does."""
    return (np.asarray(picture, dtype=np.float64) @ GREY).astype(np.uint8).reshape(-1)
