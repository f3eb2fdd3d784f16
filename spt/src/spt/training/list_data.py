"""The image lists as Lightning data: seeded order and augmentation, exact resume, evaluation on one or several sets."""

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from paperkit.data.resumable import ResumableData, SeededDataset, SeededSampler, seeded_loader
from paperkit.errors import UserError
from spt.training.image_lists import (
    DOMAINS,
    ImageList,
    ListDataset,
    domain_split,
    few_shot_split,
    fgvc_split,
    make_transform,
    vtab_split,
)
from spt.training.recipe import DataOptions


def training_lists(options: DataOptions) -> list[ImageList]:
    """The parts trained on: the training part, and with `final` the validation part too where the paper does so."""
    if options.kind == "vtab":
        return [vtab_split(options.root, options.name, "train800val200" if options.final else "train800")]
    if options.kind == "fgvc":
        return [fgvc_split(options.root, options.name, "train")]
    return [few_shot_split(options.root, options.name, "train", options.shots, options.list_seed)]


def sensitivity_list(options: DataOptions) -> ImageList:
    """What sensitivities are measured on: never the validation part."""
    if options.kind == "vtab":
        return vtab_split(options.root, options.name, "train800")
    return training_lists(options)[0]


def evaluation_lists(options: DataOptions) -> dict[str, ImageList]:
    """Name -> set that the run is evaluated on; the first is the main one."""
    split = "test" if options.final else "val"
    if options.kind == "vtab":
        return {split: vtab_split(options.root, options.name, "test" if options.final else "val200")}
    if options.kind == "fgvc":
        return {split: fgvc_split(options.root, options.name, split)}
    if options.name == "imagenet":  # its list of the validation images is the test
        split = "val"
    lists = {split: few_shot_split(options.root, options.name, split)}
    if options.domains:
        if options.name != "imagenet":
            raise UserError(f"the shifted ImageNets are evaluated after few-shot imagenet, not after {options.name}")
        lists.update({name: domain_split(options.domains, name) for name in DOMAINS})
    return lists


class WholeEpochSampler(SeededSampler):
    """Keeps the last, smaller batch of an epoch, as released: 1000 images in batches of 64 are 16 steps, not 15."""

    def __len__(self) -> int:
        share = self.n // self.num_replicas
        return (share + self.batch_size - 1) // self.batch_size


class ListData(ResumableData, pl.LightningDataModule):
    """Training and evaluation loaders of one task; the last, smaller batch of an epoch is kept, as released.

    Args:
        options: which data.
        batch_size, eval_batch_size: images of one process and step.
        seed: of order and augmentation.
    """

    def __init__(self, options: DataOptions, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__()
        self.options, self.batch_size, self.eval_batch_size, self.seed = options, batch_size, eval_batch_size, seed
        train = make_transform(options.transform, True, options.size)
        still = make_transform(options.transform, False, options.size)
        parts = training_lists(options)
        self.classes = parts[0].classes
        self.train: ConcatDataset = ConcatDataset([ListDataset(part, train) for part in parts])
        self.tests = {name: ListDataset(images, still) for name, images in evaluation_lists(options).items()}
        self.for_sensitivity = ListDataset(sensitivity_list(options), still)

    def train_dataloader(self) -> DataLoader:
        """Batches in an order of (seed, epoch), from where the checkpoint left them."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        n = len(self.train)
        sampler = self.place(WholeEpochSampler(n, self.seed, rank, world, min(self.batch_size, n)))
        return seeded_loader(SeededDataset(self.train, self.seed), sampler, self.options.workers)

    def val_dataloader(self) -> list[DataLoader]:
        """One loader a set, in fixed order."""
        return [
            seeded_loader(
                SeededDataset(data, self.seed), self.eval_sampler(len(data), self.eval_batch_size), self.options.workers
            )
            for data in self.tests.values()
        ]

    def sensitivity_batches(self, count: int, size: int = 32) -> list[tuple[Tensor, Tensor]] | DataLoader:
        """The first images in fixed order, evaluation transform."""
        return DataLoader(self.for_sensitivity, batch_size=size, shuffle=False, num_workers=self.options.workers)
