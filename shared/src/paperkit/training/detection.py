"""What training a detector of torchvision's on COCO needs besides the detector: the schedule, and who judges it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from paperkit.data.coco import CocoData, CocoImages, Sample, as_results, average_precision
from paperkit.errors import UserError


def rate_factor(
    step: int, steps_per_epoch: int, milestones: Iterable[int], warmup_iters: int, warmup_factor: float
) -> float:
    """The rate of an iteration as a share of the peak: linear warm-up, a tenth from each milestone (an epoch) on."""
    factor = 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in milestones)
    if step < warmup_iters:
        factor *= warmup_factor + (1 - warmup_factor) * step / warmup_iters
    return factor


def stepped_adamw(
    groups: list[dict[str, Any]],
    lr: float,
    steps_per_epoch: int,
    milestones: Iterable[int],
    warmup_iters: int,
    warmup_factor: float,
) -> dict[str, Any]:
    """AdamW and `rate_factor`, as `configure_optimizers` returns them.

    Raises:
        UserError: not even one batch an epoch.
    """
    if steps_per_epoch < 1:
        raise UserError("not even one batch an epoch")
    optimizer, curve = torch.optim.AdamW(groups, lr=lr), (steps_per_epoch, tuple(milestones))
    schedule = LambdaLR(optimizer, lambda step: rate_factor(step, *curve, warmup_iters, warmup_factor))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Detections:
    """What a detector found in a split, for COCO's average precision.

    Args:
        first_label: of the detector's object classes; 1 where 0 is the background.
        masks: whether it finds masks.
    """

    def __init__(self, first_label: int, masks: bool) -> None:
        self.first_label, self.masks = first_label, masks
        self.found: tuple[list[dict], list[dict]] = ([], [])

    def add(self, images: CocoImages, batch: Sequence[Sample], outputs: Sequence[dict[str, Tensor]]) -> None:
        """The outputs of a batch."""
        for (_, target), output in zip(batch, outputs, strict=True):
            for mine, more in zip(
                self.found, as_results(output, int(target["image_id"]), images, self.first_label), strict=True
            ):
                mine += more

    def judged(self, images: CocoImages, world: int = 1) -> dict[str, float]:
        """`box_AP`, `box_AP50`, ... and `mask_...` over what all `world` processes found; then nothing is kept."""
        gathered: list[Any] = [self.found]
        if world > 1:
            gathered = [None] * world
            torch.distributed.all_gather_object(gathered, self.found)
        boxes, masks = ([entry for found in gathered for entry in found[kind]] for kind in (0, 1))
        self.found = ([], [])
        values = {f"box_{name}": value for name, value in average_precision(images, boxes).items()}
        if self.masks:
            values |= {f"mask_{name}": v for name, v in average_precision(images, masks, "segm").items()}
        return values


def log_average_precision(module: pl.LightningModule, found: Mapping[str, float]) -> None:
    """Logs what `Detections.judged` gave as `val/...`."""
    for name, value in found.items():
        module.log(f"val/{name}", value, prog_bar=name.endswith("_AP"), rank_zero_only=True)


@torch.no_grad()
def average_precisions(
    detector: nn.Module, data: CocoData, on: torch.device, first_label: int, masks: bool
) -> dict[str, float]:
    """`val/box_AP` and the like of a detector in eval mode on the validation split."""
    detector, judge = detector.to(on).eval(), Detections(first_label, masks)
    for batch in data.val_dataloader():
        judge.add(data.val_images, batch, detector([image.to(on) for image, _ in batch]))
    return {f"val/{name}": value for name, value in judge.judged(data.val_images).items()}
