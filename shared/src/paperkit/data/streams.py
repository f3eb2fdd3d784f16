"""WebDataset shards, read in order through timm: for data that are too large or too far away for random access.

A stream's order comes from the shards and a shuffling buffer, so it can be drawn again only from the beginning of an
epoch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from timm.data.readers import reader_wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from paperkit.data.layouts import needs_package
from paperkit.data.pictures import read_picture
from paperkit.data.resumable import SeededSampler
from paperkit.data.seeding import generators_kept, seed_generators, seed_of
from paperkit.errors import UserError

TAR_BLOCK = 512


class EpochSampler(SeededSampler):
    """The position of a stream, which can only be the beginning of an epoch."""

    def seek(self, epoch: int, start: int = 0) -> None:
        """Raises UserError if `start` lies within the epoch."""
        if start:
            raise UserError(
                f"a stream cannot be resumed in the middle of an epoch (batch {start} of epoch {epoch}); resume from a "
                "checkpoint of an epoch's end, or use folders or tar files"
            )
        super().seek(epoch)


class ShardStream(IterableDataset[Any]):
    """One split of WebDataset shards as (transformed image, label), this process's and this worker's share of it.

    Args:
        root: folder of the shards and their `_info.json`.
        split: name of a split in it, or a pattern such as `train-{0000..0063}.tar|80000` (shards | images).
        transform: PIL image to tensor.
        seed: run seed.
        batch_size: of a process; the reader rounds its shares up to it in training.
        training: shuffle.
    """

    def __init__(
        self, root: Path, split: str, transform: Callable[[Any], Any], seed: int, batch_size: int, training: bool
    ) -> None:
        needs_package("webdataset", "wds/")
        try:
            self.reader = reader_wds.ReaderWds(
                str(root), split=split, is_training=training, batch_size=batch_size, seed=seed
            )
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"cannot read split {split} in {root}: {error}; it should hold shards and _info.json"
            ) from None
        check_shards(root, list(self.reader.split_info.filenames))
        self.transform, self.seed, self.epoch = transform, seed, 0
        # Not __len__: the number of batches depends on the workers' shares, and Lightning would stop at a wrong one.
        self.images = int(self.reader.num_samples)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        worker = get_worker_info()
        self.reader.set_epoch(self.epoch)
        self.reader.worker_seed = seed_of(self.seed, self.epoch)
        with _own_reading():
            self.reader._lazy_init()  # anew, so that its shuffling starts from the epoch's seed
        for count, (image, label) in enumerate(self.reader):
            with generators_kept():
                seed_generators(self.seed, self.epoch, self.reader.dist_rank, worker.id if worker else 0, count)
                yield self.transform(image), int(label)


class StreamLoader:
    """Batches of a training stream, an epoch at a time; Lightning finds `sampler.set_epoch`.

    Every rank gives the same number of batches; each epoch starts fresh workers with seeds of its own.
    """

    def __init__(self, stream: ShardStream, sampler: EpochSampler, num_workers: int) -> None:
        self.stream, self.sampler, self.num_workers = stream, sampler, num_workers

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        self.stream.epoch = self.sampler.epoch
        generator = torch.Generator().manual_seed(seed_of(self.stream.seed, self.sampler.epoch, self.sampler.rank))
        batches = DataLoader(
            self.stream, self.sampler.batch_size, num_workers=self.num_workers, generator=generator, drop_last=True
        )
        return islice(iter(batches), len(self))


def check_shards(root: Path, names: list[str]) -> None:
    """Refuses missing and half-copied shards: a tar file ends with two empty blocks.

    Raises:
        UserError: naming the first such shard.
    """
    for name in names:
        path = root / name
        if "://" in name or "::" in name:
            continue
        if not path.is_file():
            raise UserError(f"shard {path} is missing; {root} should hold all {len(names)} shards of the split")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 2 * TAR_BLOCK, 0))
            if size < 2 * TAR_BLOCK or size % TAR_BLOCK or file.read().strip(b"\0"):
                raise UserError(f"shard {path} ends early ({size} bytes); copy it again")


def _refuse(error: Exception) -> NoReturn:
    if isinstance(error, UserError):
        raise error
    why = ", ".join(arg for arg in error.args if isinstance(arg, str)) or repr(
        error
    )  # webdataset adds the shard's path
    raise UserError(f"cannot read a sample of the shards: {why}; copy them again") from None


@contextmanager
def _own_reading() -> Iterator[None]:
    """Pipelines that timm builds within refuse what they cannot read, and read pictures as everybody here does.

    timm's own way is to leave out such samples with a warning; its module is left as it was.
    """
    kept = {name: getattr(reader_wds, name) for name in ("log_and_continue", "_decode")}

    def decode(sample: dict[str, Any], image_key: str = "jpg", **options: Any) -> Any:
        key = next((key for key in image_key.split(";") if key in sample), image_key)
        # The label is timm's affair; it gets a blank in the picture's place.
        made = kept["_decode"]({**sample, key: _BLANK}, image_key=image_key, **options)
        if made is not None:
            made["jpg"] = read_picture(sample[key], f"{sample['__key__']}.{key} of {sample['__url__']}")
        return made

    try:
        for name, value in (("log_and_continue", _refuse), ("_decode", decode)):
            setattr(reader_wds, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(reader_wds, name, value)


def _blank() -> bytes:
    file = BytesIO()
    Image.new("RGB", (1, 1)).save(file, "BMP")
    return file.getvalue()


_BLANK = _blank()
