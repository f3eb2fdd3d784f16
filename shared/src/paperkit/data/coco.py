"""COCO's folder layout as images and targets for torchvision's detectors, and its mean average precision.

Layout: `root/{train2017,val2017}/*.jpg` and `root/annotations/instances_{train2017,val2017}.json`.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from paperkit.data.coco_file import read_annotations
from paperkit.data.pictures import read_picture
from paperkit.data.resumable import Draw, ResumableData, seeded_loader
from paperkit.data.seeding import generators_kept, seed_generators
from paperkit.errors import UserError

LAYOUT = "annotations/instances_<split>.json and <split>/*.jpg, split train2017 and val2017"
Sample = tuple[Tensor, dict[str, Tensor]]


class CocoImages:
    """One split. `self[i]` is an image (3, H, W) in [0, 1] and its target: boxes, labels from 1 on, image_id, masks.

    Args:
        root: folder of the data.
        split: train2017 or val2017.
        categories: names to keep, in the order of their labels; None for all of the file.
        with_objects: leave images without any object out, as training does.
        masks: objects have masks; without them the targets have none.

    Raises:
        UserError: a missing or broken file, entries in it that cannot be read, or categories that it does not have.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        categories: Sequence[str] | None = None,
        with_objects: bool = False,
        masks: bool = True,
    ) -> None:
        root, self.masks = Path(root).expanduser(), masks
        folder, annotations = root / split, root / "annotations" / f"instances_{split}.json"
        for place in (folder, annotations):
            if not place.exists():
                raise UserError(f"no {place}; the data root must hold {LAYOUT}")
        self.coco = COCO()
        self.coco.dataset = read_annotations(annotations, folder, masks)
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco.createIndex()
        known = {category["name"]: category["id"] for category in self.coco.dataset["categories"]}
        lacking = [name for name in categories or () if name not in known]
        if lacking or not known:
            raise UserError(
                f"{annotations} has no category {', '.join(lacking) or 'at all'}; it has {', '.join(known)}"
            )
        self.names = list(categories or known)
        self.category_ids = [known[name] for name in self.names]
        self.label_of = {number: i for i, number in enumerate(self.category_ids, 1)}
        self.ids = sorted(self.coco.getImgIds())
        if with_objects:
            self.ids = [i for i in self.ids if self._objects(i)]
        if not self.ids:
            raise UserError(
                f"{annotations} lists no image" + (" with an object of the categories" if with_objects else "")
            )

    def __len__(self) -> int:
        return len(self.ids)

    def _objects(self, image_id: int) -> list[dict[str, Any]]:
        return self.coco.loadAnns(self.coco.getAnnIds(image_id, self.category_ids, iscrowd=False))

    def __getitem__(self, index: int) -> Sample:
        number = self.ids[index]
        image = pil_to_tensor(read_picture(self.coco.imgs[number]["file_name"])).float() / 255
        objects = self._objects(number)
        x, y, w, h = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4).T
        target = dict(
            boxes=torch.stack((x, y, x + w, y + h), dim=1),
            labels=torch.tensor([self.label_of[a["category_id"]] for a in objects], dtype=torch.int64),
            image_id=torch.tensor(number),
        )
        if self.masks:
            masks = [torch.from_numpy(self.coco.annToMask(a)) for a in objects]
            target["masks"] = torch.stack(masks) if masks else torch.zeros((0, *image.shape[1:]), dtype=torch.uint8)
        return image, target


class _Batches(Dataset[list[Sample]]):
    """Answers a list of draws with a list of samples; flip and crop are functions of (seed, epoch, image)."""

    def __init__(self, images: CocoImages, seed: int, flip: float, crop: float) -> None:
        self.images, self.seed, self.flip, self.crop = images, seed, flip, crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draws: Sequence[Draw]) -> list[Sample]:
        return [self._sample(draw) for draw in draws]

    def _sample(self, draw: Draw) -> Sample:
        image, target = self.images[draw.index]
        with generators_kept():
            seed_generators(self.seed, draw.epoch, draw.index)
            if torch.rand(()).item() < self.flip:
                width = image.shape[2]
                left, top, right, bottom = target["boxes"].unbind(1)
                boxes = torch.stack((width - right, top, width - left, bottom), dim=1)
                masks = {"masks": target["masks"].flip(2)} if "masks" in target else {}
                image, target = image.flip(2), {**target, "boxes": boxes, **masks}
            if self.crop and torch.rand(()).item() < self.crop:
                image, target = resized_crop(image, target)
        return image, target


CROP_FROM, CROP_TO, CROP_LONGEST = (400, 500, 600), (384, 600), 1333
"""px of the shorter side before the crop, of the crop's sides, and of the longer side (DETR's and Swin's policy)."""


def resized_crop(image: Tensor, target: dict[str, Tensor]) -> Sample:
    """An image of a shorter side of 400, 500 or 600 px, of which 384 to 600 px of each side are kept.

    Boxes are cut at the border; objects outside of it go. Draws from torch's generator.
    """
    height, width = image.shape[1:]
    short = CROP_FROM[int(torch.randint(len(CROP_FROM), ()))]
    scale = min(short / min(height, width), CROP_LONGEST / max(height, width))
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    image = interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    lengths = [int(torch.randint(min(side, CROP_TO[0]), min(side, CROP_TO[1]) + 1, ())) for side in size]
    top, left = (int(torch.randint(side - kept + 1, ())) for side, kept in zip(size, lengths, strict=True))
    stretch = torch.tensor([size[1] / width, size[0] / height] * 2)
    boxes = target["boxes"] * stretch - torch.tensor([left, top] * 2)
    limits = torch.tensor([lengths[1], lengths[0]] * 2)
    boxes = boxes.clamp(min=0).minimum(limits)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    kept = {**target, "boxes": boxes[inside], "labels": target["labels"][inside]}
    if "masks" in target:
        masks = interpolate(target["masks"][inside][:, None].float(), size, mode="nearest")[:, 0].to(torch.uint8)
        kept["masks"] = masks[:, top : top + lengths[0], left : left + lengths[1]]
    return image[:, top : top + lengths[0], left : left + lengths[1]], kept


class CocoData(ResumableData, pl.LightningDataModule):
    """Training and validation batches (lists of samples).

    Args:
        root: folder of the data.
        batch_size: images a process takes in one step; the paper's 16 are 8 processes x 2.
        num_workers: processes that decode.
        seed: run seed.
        flip: probability of a horizontal flip.
        crop: probability of `resized_crop` before the detector's own resizing; Swin's recipe has 0.5.
        categories: names to keep; None for all.
    """

    def __init__(
        self, root: str = "data/coco", batch_size: int = 2, num_workers: int = 4, seed: int = 0, flip: float = 0.5,
        crop: float = 0.0, categories: list[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.root, self.batch_size, self.num_workers, self.seed = root, batch_size, num_workers, seed
        self.flip, self.crop = flip, crop
        self.categories, self.masks = categories, True
        self._ready = False

    def setup(self, stage: str | None = None) -> None:
        """Opens both splits, with `masks` or without."""
        if not self._ready:
            self.train_images = CocoImages(self.root, "train2017", self.categories, True, self.masks)
            self.val_images = CocoImages(self.root, "val2017", self.train_images.names, False, self.masks)
            self._ready = True

    @property
    def num_classes(self) -> int:
        """Categories of the training file."""
        self.setup()
        return len(self.train_images.names)

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = self.train_sampler(len(self.train_images), self.seed, self.batch_size)
        return seeded_loader(_Batches(self.train_images, self.seed, self.flip, self.crop), sampler, self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        sampler = self.eval_sampler(len(self.val_images), self.batch_size)
        return seeded_loader(_Batches(self.val_images, self.seed, 0.0, 0.0), sampler, self.num_workers)


def as_results(
    output: dict[str, Tensor], image_id: int, images: CocoImages, first_label: int
) -> tuple[list[dict], list[dict]]:
    """One image's detections in COCO's result form: (boxes, masks); masks are empty where the detector has none."""
    from pycocotools import mask as masks

    boxes, segments = [], []
    for i in range(len(output["scores"])):
        left, top, right, bottom = output["boxes"][i].tolist()
        label = int(output["labels"][i]) - first_label
        if not 0 <= label < len(images.category_ids):
            continue
        entry = dict(image_id=image_id, category_id=images.category_ids[label], score=float(output["scores"][i]))
        boxes.append({**entry, "bbox": [left, top, right - left, bottom - top]})
        if "masks" in output:
            packed = masks.encode(np.asfortranarray((output["masks"][i, 0] > 0.5).cpu().numpy().astype(np.uint8)))
            segments.append({**entry, "segmentation": {**packed, "counts": packed["counts"].decode()}})
    return boxes, segments


def average_precision(images: CocoImages, results: list[dict], kind: str = "bbox") -> dict[str, float]:
    """COCO's AP, AP50, AP75 (0 to 100) of results over all images of a split; 0 without any result."""
    if not results:
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        found = images.coco.loadRes(results)
        judge = COCOeval(images.coco, found, kind)
        judge.params.catIds, judge.params.imgIds = images.category_ids, images.ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {
        name: 100 * max(0.0, float(value)) for name, value in zip(("AP", "AP50", "AP75"), judge.stats[:3], strict=True)
    }
