"""Batches for the reward: images taken out of the training set, under the transform of an evaluation (section 3.2).

Batch k is a function of (seed, k) alone, so that a resumed run rewards by the same images; the ranks share it out.
The sampler learns from these images and the weights never see them.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from paperkit.data.resumable import Draw
from paperkit.data.seeding import seed_of
from paperkit.errors import UserError

WORKERS = 2
"""Processes that decode; a batch is wanted every few steps only."""


class Sized(Protocol):
    """A data set that answers a list of draws with a whole batch (`paperkit.data.resumable.SeededDataset`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, draw: Any) -> Any: ...


class _FromNumber(Sampler[list[Draw]]):
    """This rank's draws of batch `start`, `start + 1`, ... without end."""

    def __init__(self, images: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.images, self.batch_size, self.seed, self.rank, self.world = images, batch_size, seed, rank, world
        self.start = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self.start
        while True:
            generator = torch.Generator().manual_seed(seed_of(self.seed, number))
            chosen = torch.randperm(self.images, generator=generator)[: self.batch_size * self.world]
            yield [Draw(0, index) for index in chosen[self.rank :: self.world].tolist()]
            number += 1


class HeldOutBatches:
    """Held-out batches by number, decoded ahead of their use where there are workers.

    Args:
        images: the held-out set.
        batch_size: images of a process.
        seed: of the run.
        rank, world: this process and the number of processes.
        workers: 0 decodes in this process; more is `WORKERS` at most.

    Raises:
        UserError: fewer images than one batch takes.
    """

    def __init__(
        self, images: Sized, batch_size: int, seed: int, rank: int = 0, world: int = 1, workers: int = 0
    ) -> None:
        if not 1 <= batch_size * world <= len(images):
            raise UserError(
                f"a reward batch of {batch_size} images on {world} process(es) and {len(images)} held-out images: take "
                "a smaller strategy.reward_batch, or a larger data.val_fraction"
            )
        self._sampler = _FromNumber(len(images), batch_size, seed, rank, world)
        count = min(workers, WORKERS)
        dataset: Dataset[Any] = images  # type: ignore[assignment]  # a Dataset without the base class
        self._loader = DataLoader(
            dataset, sampler=self._sampler, batch_size=None, num_workers=count, persistent_workers=count > 0,
            pin_memory=torch.cuda.is_available(), generator=torch.Generator(),
        )  # fmt: skip
        self._coming: Iterator[tuple[Tensor, Tensor]] | None = None
        self._next = -1

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeldOutBatches":
        """Itself: an average of the weights is a copy of the whole module, and needs no images of its own."""
        return self

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) and labels (B,) of batch `number`; one after the other is the fast order."""
        if self._coming is None or number != self._next:
            self._sampler.start = number
            self._coming = iter(self._loader)
        self._next = number + 1
        return next(self._coming)
