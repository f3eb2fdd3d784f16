"""ADE20K's folder as Lightning data: seeded scale, crop, flip and colours in training, whole images in evaluation.

Shapes: H x W pixels.
"""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from paperkit.data.pictures import load_picture, read_picture
from paperkit.data.resumable import ResumableData, SeededDataset, seeded_loader
from paperkit.errors import UserError
from spt.models.setr import IGNORED
from spt.training.image_lists import IMAGENET_MEAN, IMAGENET_STD
from spt.training.segmentation_recipe import SceneOptions

RATIOS = (0.5, 2.0)  # of the training scale
LARGEST_SHARE = 0.75  # a crop in which one class fills more is drawn again, ten times at most
SPLITS = ("training", "validation")
SUFFIXES = (".jpg", ".jpeg", ".png")
NOTHING = 255  # stands for no class in many tools' annotations, beside 0


def scene_pairs(root: str | Path, split: str) -> list[tuple[Path, Path]]:
    """(image, annotation) of every image of a split, in the order of their names.

    Raises:
        UserError: for a missing folder, no image, or an image without its annotation.
    """
    images, labels = (Path(root) / kind / split for kind in ("images", "annotations"))
    for folder, suffix in ((images, "jpg"), (labels, "png")):
        if not folder.is_dir():
            raise UserError(f"no ADE20K at {root}: {folder} is missing; it should hold *.{suffix} files")
    visible = (path for path in images.iterdir() if not path.name.startswith("."))  # `._x.jpg` of macOS is no image
    found = sorted(path for path in visible if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{images} holds no image ({', '.join(SUFFIXES)})")
    stems = [path.stem for path in found]
    if twice := [stem for stem in stems if stems.count(stem) > 1] if len(set(stems)) < len(stems) else []:
        raise UserError(f"{images} holds {twice[0]} twice, under two suffixes, and there is one annotation for both")
    pairs = [(path, labels / f"{path.stem}.png") for path in found]
    lacking = [label for _, label in pairs if not label.is_file()]
    if lacking:
        raise UserError(f"{len(lacking)} of {len(pairs)} annotations of {split} are missing, the first is {lacking[0]}")
    return pairs


def read_labels(path: Path) -> Tensor:
    """(H, W) int64 of an annotation with one number a pixel: grey, or a palette's own numbers.

    Raises:
        UserError: for a picture in colour, of which nobody knows the classes.
    """
    bands = TF.pil_to_tensor(load_picture(path))
    if bands.is_floating_point():
        raise UserError(f"{path} holds fractions; an annotation has one whole number a pixel")
    if bands.shape[0] >= 3 and not bool((bands[0] == bands[1]).all() and (bands[0] == bands[2]).all()):
        raise UserError(f"{path} is in colour; an annotation has one number a pixel: 1, 2, ... for classes, 0 for none")
    return bands[0].long()


class Scenes(Dataset):
    """Item i is (image (3, H, W) normalised, labels (H, W) int64 with 255 for ignored).

    Args:
        pairs: of `scene_pairs`.
        options: sizes and classes.
        view: `random` crops for training, `centre` crops for the sensitivities, `whole` images for evaluation.
    """

    def __init__(self, pairs: list[tuple[Path, Path]], options: SceneOptions, view: str) -> None:
        self.pairs, self.options, self.view = pairs, options, view
        self.colours = v2.RandomPhotometricDistort(
            brightness=(1 - 32 / 255, 1 + 32 / 255), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.1, 0.1)
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self._read(*self.pairs[index])
        if self.view == "random":
            low, high = RATIOS
            image, labels = self._scaled(image, labels, float(torch.empty(()).uniform_(low, high)))
            image, labels = self._random_crop(image, labels)
            if bool(torch.rand(()) < 0.5):
                image, labels = image.flip(-1), labels.flip(-1)
            image = self.colours(image)
        elif self.view == "centre":
            image, labels = self._scaled(image, labels, 1.0)
            image, labels = self._cut(image, labels, *((s - self.options.size) // 2 for s in labels.shape))
        else:
            image = self._scaled(image, labels, 1.0)[0]  # the labels keep their size: that is what counts
        normal = TF.normalize(TF.to_dtype(image, torch.float32, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))
        if self.view == "whole":
            return normal, labels
        return self._padded(normal, 0.0), self._padded(labels, IGNORED)

    def _read(self, image_path: Path, label_path: Path) -> tuple[Tensor, Tensor]:
        pixels, raw = TF.pil_to_tensor(read_picture(image_path)), read_labels(label_path)
        if pixels.shape[-2:] != raw.shape:
            raise UserError(
                f"{label_path} is of another size ({list(raw.shape)}) than its image {list(pixels.shape[-2:])}"
            )
        if self.options.classes < NOTHING:
            raw[raw == NOTHING] = 0
        if int(raw.max()) > self.options.classes:
            raise UserError(
                f"class counts differ: {label_path} has label {int(raw.max())}, classes are 1 to {self.options.classes}"
            )
        return pixels, torch.where(raw == 0, IGNORED, raw - 1)

    def _scaled(self, image: Tensor, labels: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        """Both until the short and the long side fit, times `ratio`."""
        short, long = sorted(labels.shape)
        factor = ratio * min(self.options.short_side / short, self.options.long_side / long)
        size = [max(1, round(side * factor)) for side in labels.shape]
        return TF.resize(image, size, antialias=True), TF.resize(
            labels[None].to(torch.uint8), size, v2.InterpolationMode.NEAREST
        )[0].long()

    def _random_crop(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(10):
            top, left = (int(torch.randint(0, max(1, side - self.options.size + 1), ())) for side in labels.shape)
            cut = self._cut(image, labels, top, left)
            _, counts = cut[1][cut[1] != IGNORED].unique(return_counts=True)
            if counts.numel() > 1 and int(counts.max()) < LARGEST_SHARE * int(counts.sum()):
                break
        return cut

    def _cut(self, image: Tensor, labels: Tensor, top: int, left: int) -> tuple[Tensor, Tensor]:
        window = (
            ...,
            slice(max(0, top), max(0, top) + self.options.size),
            slice(max(0, left), max(0, left) + self.options.size),
        )
        return image[window], labels[window]

    def _padded(self, x: Tensor, value: float) -> Tensor:
        bottom, right = (self.options.size - side for side in x.shape[-2:])
        return torch.nn.functional.pad(x, (0, right, 0, bottom), value=value)


class SceneData(ResumableData, pl.LightningDataModule):
    """Training crops in an order of (seed, epoch), and whole validation images one at a time."""

    def __init__(self, options: SceneOptions, batch_size: int, seed: int) -> None:
        super().__init__()
        self.options, self.batch_size, self.seed = options, batch_size, seed
        training, validation = (scene_pairs(options.root, split) for split in SPLITS)
        self.train, self.tests = Scenes(training, options, "random"), Scenes(validation, options, "whole")
        self.for_sensitivity = Scenes(training, options, "centre")

    def train_dataloader(self) -> DataLoader:
        """Batches of crops."""
        sampler = self.train_sampler(len(self.train), self.seed, self.batch_size)
        return seeded_loader(SeededDataset(self.train, self.seed), sampler, self.options.workers)

    def val_dataloader(self) -> DataLoader:
        """One image at a time: they differ in size."""
        return seeded_loader(
            SeededDataset(self.tests, self.seed), self.eval_sampler(len(self.tests), 1), self.options.workers
        )

    def sensitivity_batches(self, size: int) -> Any:
        """The first images in fixed order, without augmentation."""
        return DataLoader(self.for_sensitivity, batch_size=size, num_workers=self.options.workers)
