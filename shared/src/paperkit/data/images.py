"""ImageNet (folder, tar, WebDataset, Hugging Face), CIFAR and TinyImageNet as batches under timm's transforms.

Shapes: B batch, C = 3 channels, S input size; labels are class numbers, mixing them is the model's affair
(`paperkit.training.classification.make_mixup`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomCrop

from paperkit.data.cifar import open_cifar
from paperkit.data.layouts import (
    Images,
    class_order,
    folder_classes,
    imagenet_classes,
    open_hugging_face,
    open_image_folder,
    open_tiny_imagenet,
    some,
)
from paperkit.data.resumable import Draw, ResumableData, SeededDataset, seeded_loader
from paperkit.data.seeding import generators_kept, seed_generators, seed_of
from paperkit.data.sizes import SizeSchedule
from paperkit.data.streams import EpochSampler, ShardStream, StreamLoader
from paperkit.errors import UserError

Batch = tuple[Tensor, Tensor]


CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100, "tinyimagenet": 200}


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keeps the upper `bits` of each pixel; timm also asks for 0 (black), which Pillow refuses from version 13 on."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else image.point(lambda _: 0)


def _posterize_whole(transform: Any) -> Any:
    """The same transform, whose operations call `posterize` instead of timm's own; timm itself stays as it is."""
    for step in transform.transforms:
        operations = [*getattr(step, "ops", ()), *(op for policy in getattr(step, "policy", ()) for op in policy)]
        for operation in operations:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
    return transform


class ImageData(ResumableData, pl.LightningDataModule):
    """Batches of normalised images (B, 3, S, S) and labels (B,), by default augmented by the recipe of DeiT.

    Runs resume exactly, also in the middle of an epoch, except with the streams `wds/...`: their readers shuffle in a
    buffer, so a run on them resumes at the beginning of an epoch and refuses a checkpoint from within one.

    Args:
        dataset: `imagenet` (folders or tar files), `cifar10`, `cifar100`, `tinyimagenet`; or in timm's words
            `wds/NAME` (WebDataset shards with their `_info.json` in `root`) and `hfds/NAME` (a Hugging Face data set: a
            local folder, or a name in the cache `root`). Nothing is ever downloaded.
        root: folder of the data.
        batch_size: images a process takes in one step; the remainder of an epoch is dropped.
        eval_batch_size: images of an evaluation step; None takes `batch_size`.
        num_workers: processes that decode; they do not change what is drawn.
        seed: run seed: moves order and augmentation, never a split.
        num_classes: outputs of the head. None takes the data set's own: those of the folder, of whatever names, or 1000
            for `wds/` and `hfds/`. 1000 gives a part of ImageNet's classes ImageNet's numbers.
        input_size: S.
        train_crop: `resized` (random area and aspect) or, for small images, `padded` (4 pixels on each side, then a
            random crop, as DeiT does up to 32 pixels).
        scale, ratio: area and aspect ratio of the resized crop.
        hflip: probability of a flip.
        auto_augment: timm's policy string, None for none.
        color_jitter: strength; timm leaves it out when `auto_augment` is on, as DeiT does.
        re_prob, re_mode, re_count: random erasing: probability, filling (pixel, rand, const), largest number of areas.
        re_splits: 2 erases in the second half of each batch only (split BatchNorm).
        interpolation: of the training crop: bicubic, bilinear, or random between them.
        eval_interpolation, crop_pct, crop_mode: evaluation resizes to S / crop_pct and crops the centre; mode
            `squash` with 1.0 resizes straight to S x S.
        mean, std: normalisation.
        repeats: copies of each drawn image, every one augmented anew (repeated augmentation; DeiT: 3).
        val_fraction: share of the training images, class by class, that validates instead of the official split, which
            then is the test split alone.
        subset: file with the numbers of the training images to keep, separated by white space (data pruning).
        size_schedule: first epoch of a stage -> size of its training images (progressive resizing), as in `{0: 128,
            100: 176, 200: 224}`; the last is `input_size`, at which every evaluation is, and has the last quarter of
            the run.
        train_split, val_split: names of the splits of `wds/` and `hfds/`.
    """

    def __init__(
        self,
        root: str,
        dataset: str = "imagenet",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 8,
        seed: int = 0,
        num_classes: int | None = None,
        input_size: int = 224,
        train_crop: Literal["resized", "padded"] = "resized",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: float = 0.4,
        re_prob: float = 0.25,
        re_mode: Literal["pixel", "rand", "const"] = "pixel",
        re_count: int = 1,
        re_splits: int = 0,
        interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic",
        eval_interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        crop_pct: float = 0.875,
        crop_mode: Literal["center", "squash", "border"] = "center",
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
        repeats: int = 1,
        val_fraction: float = 0.0,
        subset: str | None = None,
        size_schedule: dict[int, int] | None = None,
        train_split: str = "train",
        val_split: str = "validation",
    ) -> None:
        super().__init__()
        self.root, self.dataset, self.seed = Path(root).expanduser(), dataset, seed
        self.stream = dataset.startswith("wds/")
        if dataset not in CLASSES and not dataset.startswith(("wds/", "hfds/")):
            raise UserError(f"data set {dataset!r} is unknown; choose {', '.join(CLASSES)}, wds/NAME or hfds/NAME")
        if not 0 <= val_fraction < 1:
            raise UserError(f"val_fraction {val_fraction} must be at least 0 and below 1")
        if self.stream and (repeats > 1 or val_fraction or subset or size_schedule):
            raise UserError(
                f"{dataset} is a stream: repeats, val_fraction, subset and size_schedule need random access"
            )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.repeats = num_workers, repeats
        self.val_fraction, self.subset, self.splits = val_fraction, subset, (train_split, val_split)
        if num_classes is not None and num_classes < 1:
            raise UserError(f"num_classes {num_classes} must be at least 1, or left out for the data set's own")
        self._num_classes = num_classes
        self._class_names: list[str] | None = None
        self.input_size = input_size
        common: dict[str, Any] = {"input_size": input_size, "mean": mean, "std": std}
        self.eval_transform = create_transform(
            **common, interpolation=eval_interpolation, crop_pct=crop_pct, crop_mode=crop_mode
        )
        erasing: dict[str, Any] = {
            "re_prob": re_prob if re_splits < 2 else 0.0,
            "re_mode": re_mode,
            "re_count": re_count,
        }
        self.sizes = SizeSchedule(size_schedule, input_size)
        self.train_transforms = {
            size: _posterize_whole(
                create_transform(
                    **{**common, "input_size": size},
                    **erasing,
                    is_training=True,
                    scale=scale,
                    ratio=ratio,
                    hflip=hflip,
                    auto_augment=auto_augment,
                    color_jitter=color_jitter,
                    interpolation=interpolation,
                )
            )
            for size in self.sizes.sizes
        }
        if train_crop == "padded":
            if len(self.train_transforms) > 1:
                raise UserError("size_schedule and train_crop padded: a padded crop cannot make an image smaller")
            self.train_transforms[input_size].transforms[0] = RandomCrop(input_size, padding=4)
        self.train_transform = self.train_transforms[input_size]
        # timm's erasing knows the halves of a batch only when it is given the batch.
        self.erase_batch = (
            RandomErasing(re_prob, mode=re_mode, max_count=re_count, num_splits=re_splits, device="cpu")
            if re_splits > 1
            else None
        )
        self._ready = False

    @property
    def class_names(self) -> list[str] | None:
        """Names by class number: of the class folders, or ImageNet's WordNet ids; None for data that carry no names.

        The folder is looked at when they are first asked for; no image is opened.

        Raises:
            UserError: if `root` is missing, holds no classes, or more than `num_classes`.
        """
        if self.dataset == "imagenet" and self._class_names is None:
            names = folder_classes(self.root)
            if self._num_classes is None and len(names) == 1:
                raise UserError(
                    f"{self.root} has one class, {names[0]}: the classes are the folders directly beneath train and "
                    "val; with num_classes given, one is enough"
                )
            self._class_names = class_order(names, self._num_classes, self.root)
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Outputs of the head: as given, or the data set's own (see `class_names` for what can be wrong)."""
        if self._num_classes is not None:
            return self._num_classes
        names = self.class_names
        return CLASSES.get(self.dataset, 1000) if names is None else len(names)

    def use_head(self, classes: int, names: Sequence[str] | None = None) -> None:
        """Gives the images the numbers of a trained head; for an evaluation, before the data are opened.

        Args:
            classes: outputs of the head.
            names: of its outputs; None if they are not known, where 1000 outputs are taken for ImageNet's.

        Raises:
            UserError: if the images are of classes that the head does not know.
        """
        if self.dataset != "imagenet":
            fixed = self._num_classes or CLASSES.get(self.dataset)
            if fixed not in (None, classes):
                raise UserError(f"{self.dataset} has {fixed} classes, but the head tells {classes} apart")
            self._num_classes = classes
            return
        imagenet = names is None and classes == CLASSES["imagenet"]
        known = imagenet_classes() if imagenet else names
        found = folder_classes(self.root)
        strange = [name for name in found if known is not None and name not in set(known)]
        if strange:
            whose = f"the {classes} of ImageNet" if imagenet else f"the {classes} of the head"
            raise UserError(
                f"{len(strange)} of the {len(found)} classes of {self.root} are not among {whose} ({some(strange)}): "
                "take the data that the head was trained on, or train a head on these"
            )
        if known is None and len(class_order(found, self._num_classes, self.root)) != classes != self._num_classes:
            raise UserError(f"{self.root} has {len(found)} classes, but the head tells {classes} apart")
        self._num_classes, self._class_names = classes, None if known is None else list(known)
        self._ready = False

    def setup(self, stage: str | None = None) -> None:
        """Opens both splits, whatever the stage, because each is checked against the other.

        Raises:
            UserError: if something is missing or broken; the line names the path and what should be there.
        """
        if self._ready:
            return
        if self.stream:
            training, evaluation = self.splits
            self._train_stream = ShardStream(
                self.root, training, self.train_transform, self.seed, self.batch_size, training=True
            )
            self._eval_stream = ShardStream(
                self.root, evaluation, self.eval_transform, self.seed, self.eval_batch_size, training=False
            )
        else:
            train, official = self._open()
            kept, held_out = self._choose(train)
            self._train_views = {size: _View(train, kept, made) for size, made in self.train_transforms.items()}
            self._train = self._train_views[self.input_size]
            self._test = _View(official, np.arange(len(official)), self.eval_transform)
            self._val = _View(train, held_out, self.eval_transform) if self.val_fraction else self._test
        self._ready = True

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of one process and epoch; divide by the accumulated batches for optimiser updates."""
        images = self._train_stream.images if self.stream else len(self._train)
        return images // (self.batch_size * self._rank_and_world()[1])

    def train_dataloader(self) -> Any:
        if self.stream:
            position = EpochSampler(self._train_stream.images, self.seed, *self._rank_and_world(), self.batch_size)
            return StreamLoader(self._train_stream, self.place(position), self.num_workers)
        sampler = self.train_sampler(len(self._train), self.seed, self.batch_size, self.repeats)
        batches = _Batches(self._train_views, self.sizes, self.seed, self.erase_batch)
        return seeded_loader(batches, sampler, self.num_workers, torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("_val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("_test")

    def indices(self, part: Literal["train", "val", "test"]) -> np.ndarray:
        """Numbers (in their own split, in its order) of the images that train, validate or test; see `val_fraction`.

        Raises:
            UserError: for a stream, which has no random access.
        """
        if self.stream:
            raise UserError(f"{self.dataset} is a stream: its images have no numbers")
        self.setup()
        return {"train": self._train, "val": self._val, "test": self._test}[part].indices.copy()

    def training_sample(self, count: int) -> Tensor:
        """`count` training images (count, 3, S, S) without augmentation, chosen by the seed; for closed-form fits.

        Raises:
            UserError: for a stream, which has no random access.
        """
        if self.stream:
            raise UserError(f"{self.dataset} is a stream: single training images cannot be read from it")
        self.setup()
        chosen = np.random.default_rng(seed_of(self.seed)).permutation(len(self._train))[:count]
        view = _View(self._train.images, self._train.indices[chosen], self.eval_transform)
        return torch.stack([view[i][0] for i in range(len(view))])

    def _eval_loader(self, part: str) -> DataLoader[Batch]:
        if self.stream:
            return DataLoader(self._eval_stream, self.eval_batch_size, num_workers=self.num_workers)
        view: _View = getattr(self, part)
        sampler = self.eval_sampler(len(view), self.eval_batch_size)
        batches = SeededDataset(view, self.seed)
        return seeded_loader(batches, sampler, self.num_workers, torch.cuda.is_available())

    def _open(self) -> tuple[Images, Images]:
        if self.dataset == "imagenet":
            return open_image_folder(self.root, self.class_names)
        if self.dataset == "tinyimagenet":
            return open_tiny_imagenet(self.root)
        if self.dataset.startswith("hfds/"):
            return open_hugging_face(self.dataset, self.root, self.splits)
        return open_cifar(self.root, self.dataset)

    def _choose(self, train: Images) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the training images that train, and of those that validate (in equal shares of each class)."""
        labels = np.asarray(train.labels)
        if labels.max() >= self.num_classes:
            raise UserError(f"{self.root} has a label {labels.max()}, but num_classes is {self.num_classes}")
        held_out = np.zeros(len(labels), dtype=bool)
        shuffled = np.random.default_rng(seed_of(0)).permutation(len(labels))  # the split is not the run seed's affair
        for label in np.unique(labels):
            members = shuffled[labels[shuffled] == label]
            held_out[members[: round(self.val_fraction * len(members))]] = True
        if self.val_fraction and not held_out.any():
            raise UserError(f"val_fraction {self.val_fraction} of {len(labels)} training images leaves none")
        kept = ~held_out
        if self.subset:
            kept &= _read_subset(Path(self.subset), len(labels))
        return np.flatnonzero(kept), np.flatnonzero(held_out)


class _View(Dataset[tuple[Tensor, int]]):
    """Chosen images of a data set under a transform."""

    def __init__(self, images: Images, indices: np.ndarray, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.indices, self.transform = images, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[int(self.indices[index])]
        return self.transform(image), label


class _Batches(SeededDataset):
    """Seeded samples of the epoch's size, collated, and then erased in a part of the batch if asked for."""

    def __init__(
        self, views: Mapping[int, _View], sizes: SizeSchedule, seed: int, erase: RandomErasing | None = None
    ) -> None:
        super().__init__(views[sizes.at(0)], seed)
        self.views, self.sizes, self.erase = views, sizes, erase

    def _sample(self, draw: Draw) -> Any:
        seed_generators(self.seed, draw.epoch, draw.index, draw.copy)
        return self.views[self.sizes.at(draw.epoch)][draw.index]

    def __getitem__(self, draw: Draw | Sequence[Draw]) -> Any:
        batch = super().__getitem__(draw)
        if self.erase is not None and not isinstance(draw, Draw):
            with generators_kept():
                seed_generators(self.seed, *draw[0], len(draw))
                self.erase(batch[0])
        return batch


def _read_subset(path: Path, total: int) -> np.ndarray:
    """(total,) bool from a file of numbers."""
    try:
        chosen = np.array(path.read_text().split(), dtype=np.int64)
    except OSError as error:
        raise UserError(f"cannot read subset {path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"subset {path} must hold whole numbers between white space") from None
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= total or len(np.unique(chosen)) < len(chosen):
        raise UserError(f"subset {path} must hold different numbers from 0 to {total - 1}, at least one")
    mask = np.zeros(total, dtype=bool)
    mask[chosen] = True
    return mask
