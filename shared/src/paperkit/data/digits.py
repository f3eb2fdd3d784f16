"""The data that are always there: scikit-learn's 1797 scans of handwritten digits, 8 x 8 pixels, ten classes.

Clean digits are too easy to tell methods apart, so the images carry Gaussian noise: a fixed part, drawn once, that
makes the task hard, and a fresh part on the training inputs, a function of (run seed, epoch, index), that stands in for
augmentation.

Shapes: N images, S size in pixels.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from paperkit.data.resumable import Draw, ResumableData, seeded_loader
from paperkit.data.seeding import seed_of
from paperkit.data.sizes import SizeSchedule
from paperkit.errors import UserError

Split = tuple[Tensor, Tensor]
TEST_IMAGES = 600


class DigitsSplit(NamedTuple):
    """Images (N, 1, S, S) float32 and labels (N,) int64 of each part; `val` is None unless it was asked for."""

    train: Split
    val: Split | None
    test: Split


def seeded_noise(shape: Sequence[int], sigma: float, *parts: int) -> Tensor:
    """Gaussian noise of standard deviation `sigma` that is a function of `shape` and `parts` alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed_of(*parts))) * sigma


def resized(images: Tensor, size: int) -> Tensor:
    """(N, 1, 8, 8) -> (N, 1, S, S), bilinear; a size of 8 is the scan itself."""
    return images if images.shape[-1] == size else F.interpolate(images, size=size, mode="bilinear", antialias=False)


def load_digits_split(
    seed: int = 0, val: int = 0, noise: float = 0.15, shift: float = 0.3, size: int = 8
) -> DigitsSplit:
    """1197 training images (of which `val` for validation) and 600 test images, classes in equal shares in each part.

    Args:
        seed: of the split and of the fixed noise. Leave it at 0: the seeds of a run move other things, so that all runs
            of all experiments are measured on the same test images.
        val: validation images taken from the training part; the experiments choose their settings on 200.
        noise: standard deviation of the fixed noise; the pixels span 0 to 1.
        shift: subtracted from the pixels after division by 16, to centre them (their mean is 0.305).
        size: S; the noise belongs to the 8 x 8 scan and is enlarged with it, so the task stays equally hard.

    Raises:
        UserError: if `val` leaves no image of some class in either part.
    """
    if val and not 10 <= val <= 1187:
        raise UserError(f"{val} validation images: give 0, or 10 to 1187 (ten classes share 1197 training images)")
    scans, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(scans.reshape(-1, 1, 8, 8)).float() / 16 - shift
    images = resized(images + seeded_noise(images.shape, noise, seed), size)
    targets = torch.from_numpy(labels).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=seed)
    held_out = None
    if val:
        train, held_out = train_test_split(train, test_size=val, stratify=labels[train], random_state=seed)

    def part(indices: np.ndarray) -> Split:
        chosen = torch.from_numpy(np.sort(indices))
        return images[chosen], targets[chosen]

    return DigitsSplit(part(train), None if held_out is None else part(held_out), part(test))


class _Batches(Dataset[Split]):
    """Answers a list of draws with one tensor indexing; a batch costs no more than the copy of its pixels.

    The fresh noise of an epoch is drawn at once, row i for image i: what image i gets depends on (seed, epoch, i) only.
    """

    def __init__(self, part: Split, sizes: SizeSchedule, fresh_noise: float = 0.0, seed: int = 0) -> None:
        self.images, self.labels = part
        self.sizes, self.fresh_noise, self.seed = sizes, fresh_noise, seed
        self._noise: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draws: Sequence[Draw]) -> Split:
        chosen = torch.tensor([draw.index for draw in draws])
        images = self.images[chosen]
        if self.fresh_noise:
            images = images + self._epoch_noise(draws[0].epoch)[chosen]
        return resized(images, self.sizes.at(draws[0].epoch)), self.labels[chosen]

    def _epoch_noise(self, epoch: int) -> Tensor:
        if self._noise is None or self._noise[0] != epoch:
            self._noise = epoch, seeded_noise(self.images.shape, self.fresh_noise, self.seed, epoch)
        return self._noise[1]


class DigitsData(ResumableData, pl.LightningDataModule):
    """The digits as whole batches of images (B, 1, S, S) and labels (B,), without worker processes.

    Args:
        batch_size: images a process takes in one step; the remainder of an epoch is dropped.
        seed: run seed: moves the order and the fresh noise, never the split.
        noise, shift, size: see `load_digits_split`.
        fresh_noise: standard deviation of the noise that each epoch draws anew for the training images.
        val_images: validation images taken from the training part; 0 trains on all 1197 and validates on none.
        eval_batch_size: images of an evaluation step.
        size_schedule: first epoch of a stage -> size of its training images; the last must be `size`.
    """

    num_classes = 10
    channels = 1

    def __init__(
        self,
        batch_size: int = 32,
        seed: int = 0,
        noise: float = 0.15,
        fresh_noise: float = 0.1,
        val_images: int = 0,
        size: int = 8,
        shift: float = 0.3,
        eval_batch_size: int = 600,
        size_schedule: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        # Lightning would have every loader use worker processes; these batches take less time than a message to one.
        warnings.filterwarnings("ignore", message=".*does not have many workers", category=PossibleUserWarning)
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.fresh_noise, self.input_size = fresh_noise, size
        self.sizes = SizeSchedule(size_schedule, size)
        # Kept as 8 x 8 scans: a batch is enlarged after its fresh noise, which belongs to the scan as well.
        self.split = load_digits_split(val=val_images, noise=noise, shift=shift)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of one process and epoch, without a trainer attached; see also `len(train_dataloader())`."""
        return len(self.split.train[1]) // (self.batch_size * (self.trainer.world_size if self.trainer else 1))

    def train_dataloader(self) -> DataLoader[Split]:
        sampler = self.train_sampler(len(self.split.train[1]), self.seed, self.batch_size)
        return seeded_loader(_Batches(self.split.train, self.sizes, self.fresh_noise, self.seed), sampler)

    def val_dataloader(self) -> DataLoader[Split] | list[DataLoader[Split]]:
        return [] if self.split.val is None else self._eval_loader(self.split.val)

    def test_dataloader(self) -> DataLoader[Split]:
        return self._eval_loader(self.split.test)

    def _eval_loader(self, part: Split) -> DataLoader[Split]:
        sampler = self.eval_sampler(len(part[1]), self.eval_batch_size)
        return seeded_loader(_Batches(part, SizeSchedule(None, self.input_size)), sampler)
