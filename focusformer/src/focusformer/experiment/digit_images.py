"""The digits of a seed: images to train on, held-out ones for rewards and choices, and those that only results see.

Shapes: B images, one channel of 8 x 8 pixels.
"""

from dataclasses import dataclass
from functools import partial

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from focusformer.experiment.settings import HELD_OUT, TEST, TRAIN
from paperkit.data.seeding import seed_of

Batch = tuple[Tensor, Tensor]
"""Images (B, 1, 8, 8) in [-1, 1] and labels (B,)."""
ORDER, REWARD = 1, 2  # streams of random numbers


@dataclass(frozen=True)
class Digits:
    """900, 300 and 597 images, classes in equal shares; the split is the seed's."""

    seed: int
    train: Batch
    held_out: Batch
    test: Batch

    def training_batch(self, step: int, size: int) -> Batch:
        """Batch of a step; each epoch has an order of its own and drops its rest."""
        images, labels = self.train
        epoch, place = divmod(step, TRAIN // size)
        order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(seed_of(self.seed, ORDER, epoch)))
        chosen = order[place * size :][:size]
        return images[chosen], labels[chosen]

    def reward_batch(self, step: int, size: int) -> Batch:
        """Held-out images of an update of the sampler, the same for all architectures of it."""
        images, labels = self.held_out
        chosen = torch.randperm(HELD_OUT, generator=torch.Generator().manual_seed(seed_of(self.seed, REWARD, step)))
        return images[chosen[:size]], labels[chosen[:size]]


def split_digits(seed: int) -> Digits:
    """The digits of a seed."""
    scans, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(scans.reshape(-1, 1, 8, 8)).to(torch.get_default_dtype()) / 8 - 1
    labels = torch.from_numpy(targets).long()
    split = partial(train_test_split, random_state=seed)
    train, rest = split(range(len(targets)), train_size=TRAIN, stratify=targets)
    held, test = split(rest, train_size=HELD_OUT, test_size=TEST, stratify=targets[rest])
    return Digits(seed, (images[train], labels[train]), (images[held], labels[held]), (images[test], labels[test]))
