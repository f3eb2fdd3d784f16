"""Tuning SETR on ADE20K: one LightningModule from top to bottom."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from spt.models.delta import kept_buffers
from spt.models.setr import IGNORED, SETR, segmentation_loss, sliding_scores
from spt.training.segmentation_recipe import SceneOptions, SegmentationRecipe
from spt.training.tuning_module import check_checkpoint


class SegmentationModule(pl.LightningModule):
    """SGD on what the method trains, the heads ten times as fast; polynomial schedule by step.

    Checkpoints hold the trained tensors and all running statistics: the rest of the trunk is on disk already.
    """

    strict_loading = False  # the frozen trunk is not in the checkpoint; on_load_checkpoint checks the rest

    def __init__(self, model: SETR, recipe: SegmentationRecipe, data: SceneOptions) -> None:
        super().__init__()
        self.model, self.recipe, self.data = model, recipe, data
        self.iou = MulticlassJaccardIndex(data.classes, average="macro", ignore_index=IGNORED)
        self.history: list[dict[str, float]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Two groups: trunk and heads; `factor` is the multiple of the learning rate."""
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if ("head" in name) == heads], "factor": factor}
            for heads, factor in ((False, 1.0), (True, self.recipe.head_factor))
        ]
        return torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=self.recipe.lr,
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The learning rate of this step."""
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.recipe.lr_at(self.global_step, group["factor"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of all heads."""
        images, labels = batch
        loss = segmentation_loss(self.model(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Windows over the image at every scale, summed at the annotation's size."""
        images, labels = batch
        total = sum(self._probabilities(images, labels.shape[-2:]), torch.zeros((), device=images.device))
        self.iou.update(total.argmax(1), labels)

    def _probabilities(self, images: Tensor, size: torch.Size) -> list[Tensor]:
        found = []
        for scale in self.data.scales:
            scaled = images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bilinear")
            for mirrored in (False, True) if self.data.flip else (False,):
                view = scaled.flip(-1) if mirrored else scaled
                scores = sliding_scores(self.model, view, self.data.classes, self.data.size, self.data.stride)
                scores = scores.flip(-1) if mirrored else scores
                found.append(F.interpolate(scores, size, mode="bilinear", align_corners=False))
        return found

    def on_validation_epoch_end(self) -> None:
        """Logs mIoU (%), classes that occur nowhere left out."""
        point = {"step": float(self.global_step), "miou": 100 * float(self.iou.compute())}
        self.iou.reset()
        self.log("miou", point["miou"], prog_bar=True, sync_dist=True)
        self.history = [p for p in self.history if p["step"] < self.global_step] + [point]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the frozen trunk out."""
        kept = self.kept_names()
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in kept}
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another method or selection."""
        check_checkpoint(self.kept_names(), checkpoint["state_dict"])
        self.history = list(checkpoint.get("history", []))

    def kept_names(self) -> set[str]:
        """State-dict keys that a checkpoint holds."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return trained | {f"model.{name}" for name in kept_buffers(self.model)}
