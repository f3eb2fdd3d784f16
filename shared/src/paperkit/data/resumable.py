"""Training that a kill cannot change: every random number is a function of (seed, epoch, index).

Nothing random is stored. A checkpoint holds only how far the data were read; the order of the images, their
augmentation and the dropout of a step are computed again from the seed. A run that was killed and resumed therefore
ends with bit-identical weights, with any number of worker processes. What it takes, one piece each:

* `SeededSampler` draws the batches: a permutation of its own for each (seed, epoch);
* `SeededDataset` seeds the augmentation of each image, and `seeded_loader` puts the two together;
* `SeedStep` seeds what the model itself draws (dropout, drop path, mixup);
* `ResumableData` writes and reads the position in a LightningDataModule's checkpoint.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from paperkit.data.seeding import generators_kept, seed_generators, seed_of
from paperkit.errors import UserError

_NOT_RESUMABLE = (
    r"You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable"
)


class Draw(NamedTuple):
    """One image of one batch. `copy` counts the appearances of an image in an epoch (repeated augmentation)."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a draw
    copy: int = 0


class _Count(Dataset[int]):
    """The n numbers that a sampler chooses from."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n


class SeededSampler(DistributedSampler[list[Draw]]):
    """Batches of an epoch as lists of `Draw`, the same for one process as for many.

    Batch b of the ranks together holds the draws that one process with the batch size `batch_size * world` would get;
    the remainder of that GLOBAL batch is dropped. It is a `DistributedSampler`, so that Lightning leaves it in place.

    With `repeats` r an epoch is as long as without, but shows n / r images r times each, every time augmented anew,
    and the copies go to neighbouring ranks (repeated augmentation, Hoffer et al., CVPR 2020, as in DeiT with r = 3).

    Args:
        n: number of images.
        seed: run seed; the order is a function of (seed, epoch).
        rank, world: this process and the number of processes.
        batch_size: images a process takes in one step.
        repeats: r above.

    Raises:
        UserError: if not even one global batch can be filled.
    """

    def __init__(self, n: int, seed: int, rank: int = 0, world: int = 1, batch_size: int = 1, repeats: int = 1) -> None:
        if batch_size < 1 or repeats < 1:
            raise UserError(f"batch size {batch_size} and repeats {repeats} must be at least 1")
        if n < batch_size * world:
            raise UserError(
                f"{n} training samples do not fill one batch of {batch_size} on {world} process(es); use a smaller one"
            )
        super().__init__(_Count(n), num_replicas=world, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.n, self.batch_size, self.repeats = n, batch_size, repeats
        self.start = 0

    def __len__(self) -> int:
        """Batches of a whole epoch, also when a pass starts in the middle: Lightning counts from the offset to here."""
        return self.n // (self.batch_size * self.num_replicas)

    def set_epoch(self, epoch: int) -> None:
        """Moves to the beginning of `epoch`; the epoch of a resumed run keeps its offset."""
        if epoch != self.epoch:
            self.seek(epoch)

    def seek(self, epoch: int, start: int = 0) -> None:
        """Makes the next pass begin with batch `start` of `epoch`."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[Draw]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.n, generator=generator)
        copies = torch.arange(self.repeats).repeat(self.n)[self.rank :: self.num_replicas]
        indices = order.repeat_interleave(self.repeats)[self.rank :: self.num_replicas]
        return self._batches(self.epoch, self.start, indices, copies)

    def _batches(self, epoch: int, start: int, indices: Tensor, copies: Tensor) -> Iterator[list[Draw]]:
        for batch in range(start, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            pairs = zip(indices[part].tolist(), copies[part].tolist(), strict=True)
            yield [Draw(epoch, index, copy) for index, copy in pairs]


class EvenSampler(DistributedSampler[list[Draw]]):
    """Evaluation batches: every image exactly once, in order, and the same number of batches on every rank.

    Lightning's own sampler repeats images until the ranks are level, which moves the accuracy of a small set; here the
    ranks' shares differ by one image at most and each share is cut into equally many, nearly equal batches.
    """

    def __init__(self, n: int, rank: int = 0, world: int = 1, batch_size: int = 1) -> None:
        if n < world:
            raise UserError(f"{n} evaluation image(s) cannot be shared by {world} processes; use fewer processes")
        super().__init__(_Count(n), num_replicas=world, rank=rank, shuffle=False)
        self.n, self.batch_size = n, batch_size

    def __len__(self) -> int:
        largest_share = -(-self.n // self.num_replicas)
        smallest_share = self.n // self.num_replicas
        return min(-(-largest_share // self.batch_size), smallest_share)

    def __iter__(self) -> Iterator[list[Draw]]:
        share = range(self.rank, self.n, self.num_replicas)
        for part in np.array_split(np.arange(len(share)), len(self)):
            yield [Draw(0, share[int(position)]) for position in part]


class SeededDataset(Dataset[Any]):
    """A map-style dataset whose random transforms depend on (seed, epoch, index, copy) alone.

    torch, numpy and `random` are seeded before each image and put back afterwards, so that transforms which draw from
    the global generators (torchvision, timm) come out the same in any worker and leave no trace in the training
    process.

    Args:
        dataset: anything with `dataset[int]`.
        seed: run seed.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw | Sequence[Draw]) -> Any:
        """One sample for a `Draw`, a collated batch for a list of them."""
        with generators_kept():
            return self._sample(draw) if isinstance(draw, Draw) else default_collate([*map(self._sample, draw)])

    def _sample(self, draw: Draw) -> Any:
        seed_generators(self.seed, draw.epoch, draw.index, draw.copy)
        return self.dataset[draw.index]


Sampled = TypeVar("Sampled", bound=SeededSampler)


def _as_is(batch: Any) -> Any:
    return batch


def seeded_loader(
    dataset: Dataset[Any], sampler: SeededSampler | EvenSampler, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Any]:
    """The loader of a dataset that answers a list of draws with a whole batch, as `SeededDataset` does."""
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


class SeedStep(pl.Callback):
    """Seeds torch, numpy and `random` from (seed, epoch, batch, rank) before every training step.

    Dropout, drop path, patch drop and timm's mixup then depend on the position in the run alone, not on what was drawn
    before.

    Args:
        seed: run seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = seed_generators(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        if pl_module.device.type != "cpu":
            torch.manual_seed(seed)


class _PlainCounters(pl.Callback):
    """Puts Lightning's (2.6) own counters in a checkpoint, before it reads them, where the data go on.

    As they are written they say at which hook the file was saved; Lightning concludes from that what is to be done
    next, not always rightly. After a file of an epoch's last batch it does not count the next epoch as begun (resumed
    from a file of that one in turn, it trains the epoch twice); after a file from between two accumulated batches it
    goes on with the next, although their gradients are lost; and an epoch that `max_steps` ended counts as finished.

    Args:
        position: what `ResumableData.state_dict` wrote.
    """

    def __init__(self, position: dict[str, int]) -> None:
        self.position = position

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loops = checkpoint["loops"]["fit_loop"]
        epoch, batch, total = (self.position[name] for name in ("epoch", "batch", "total batches"))
        begun = epoch + 1 if batch else epoch
        epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
        loops["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
        loops["epoch_loop.batch_progress"] = _batches(batch, total)
        loops["epoch_loop.val_loop.batch_progress"] = _batches(0, 0)
        loops["epoch_loop.state_dict"] = {"_batches_that_stepped": checkpoint["global_step"]}


def _batches(current: int, total: int) -> dict[str, Any]:
    names = ("ready", "started", "processed", "completed")
    return {"total": dict.fromkeys(names, total), "current": dict.fromkeys(names, current), "is_last_batch": False}


class ResumableData:
    """Mixin of a LightningDataModule (stated first) that continues an epoch where the checkpoint left it.

    `train_dataloader` takes its sampler from `train_sampler`; the rest is here. A checkpoint from the middle of
    an epoch is refused when the seed, the batch size, the number of images, of copies or of processes has changed:
    batch 17 would hold other images. At the end of an epoch all of them may change. A validation that the kill cut off
    is not made up for; training does not depend on it.
    """

    trainer: pl.Trainer | None
    _sampler: SeededSampler | None = None
    _resume: dict[str, int] | None = None

    def train_sampler(self, n: int, seed: int, batch_size: int, repeats: int = 1) -> SeededSampler:
        """The sampler of this process, placed where `place` says."""
        return self.place(SeededSampler(n, seed, *self._rank_and_world(), batch_size, repeats))

    def place(self, sampler: Sampled) -> Sampled:
        """Puts a sampler to the position of the loaded checkpoint or of the trainer; its position is saved from now on.

        Raises:
            UserError: if the checkpoint cannot be continued with these numbers, or if `overfit_batches` is set.
        """
        trainer = self.trainer
        if trainer and trainer.overfit_batches:  # type: ignore[attr-defined]
            raise UserError("overfit_batches replaces the sampler that makes runs resumable; use limit_train_batches")
        epoch, start = trainer.current_epoch if trainer else 0, 0
        if self._resume and self._resume["epoch"] >= epoch:
            epoch, start = self._resume["epoch"], self._resume["batch"]
            changed = [
                f"{name} was {self._resume[name]}, is {now}"
                for name, now in _settings(sampler).items()
                if self._resume[name] != now
            ]
            if start and changed:
                raise UserError(f"cannot continue in the middle of epoch {epoch}: {'; '.join(changed)}")
        sampler.seek(epoch, start)
        self._sampler = sampler
        return sampler

    def eval_sampler(self, n: int, batch_size: int) -> EvenSampler:
        """The evaluation sampler of this process."""
        return EvenSampler(n, *self._rank_and_world(), batch_size)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batch that come next, and the numbers that they depend on."""
        if self._sampler is None or self.trainer is None:
            return {}
        # `ready`, not `completed`: when ModelCheckpoint writes, the step is done but not yet counted as completed.
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, batch = self._sampler.epoch, progress.current.ready
        # The gradients of an unfinished accumulation are in no file: its batches have to be drawn again.
        lost = 0 if progress.is_last_batch else batch % self.trainer.accumulate_grad_batches
        place = {"epoch": epoch + 1, "batch": 0} if progress.is_last_batch else {"epoch": epoch, "batch": batch - lost}
        return {**place, "total batches": progress.total.ready - lost, **_settings(self._sampler)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by Lightning before the training loader is built; also before an evaluation, where it does nothing."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        warnings.filterwarnings("ignore", message=_NOT_RESUMABLE, category=PossibleUserWarning)
        self._resume = dict(state_dict)
        if self.trainer is not None:
            self.trainer.callbacks.append(_PlainCounters(state_dict))  # type: ignore[attr-defined]

    def teardown(self, stage: str) -> None:
        """A later `fit` without a checkpoint starts from the beginning."""
        self._resume = None


def _settings(sampler: SeededSampler) -> dict[str, int]:
    return {
        "seed": sampler.seed,
        "images": sampler.n,
        "batch size": sampler.batch_size,
        "processes": sampler.num_replicas,
        "repeats": sampler.repeats,
    }
