"""Tuning on real data: one LightningModule from top to bottom."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from paperkit.errors import UserError
from paperkit.training import optim
from spt.method.tuning import optimizer_groups
from spt.models.delta import kept_buffers
from spt.training.recipe import RecipeOptions


class TuningModule(pl.LightningModule):
    """AdamW on what the method trains; the released schedule, constant within an epoch.

    Checkpoints hold the trained tensors and the running statistics that training moves: the rest of the backbone is
    on disk already.

    Args:
        model: see `spt.training.methods.prepare_method`.
        recipe: optimiser and schedule.
        classes: of the task.
        sets: names of the evaluation sets, the main one first.
    """

    strict_loading = False  # the frozen backbone is not in the checkpoint; on_load_checkpoint checks the rest

    def __init__(self, model: nn.Module, recipe: RecipeOptions, classes: int, sets: list[str]) -> None:
        super().__init__()
        self.model, self.recipe, self.sets = model, recipe, sets
        self.top1 = nn.ModuleList(
            MetricCollection({"top1": MulticlassAccuracy(classes, average="micro")}) for _ in sets
        )
        self.history: list[dict[str, float]] = []

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.model(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Two groups: tensors of more than one dimension decay, the rest does not."""
        groups = [
            {k: v for k, v in g.items() if k != "names"} for g in optimizer_groups(self.model, self.recipe.weight_decay)
        ]
        optimizer, self.schedule = optim.build(groups, self.recipe.optim(), 1, self.recipe.epochs)
        return optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The learning rate of this epoch; at each step, so that a run resumed with another rate takes it at once."""
        self.schedule.advance(self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy."""
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Counts top-1 hits of one set."""
        images, labels = batch
        metric = self.top1[dataloader_idx]
        assert isinstance(metric, MetricCollection)
        metric.update(self.model(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Logs top-1 (%) of every set and keeps it for the result."""
        point = {"epoch": float(self.current_epoch)}
        for name, metric in zip(self.sets, self.top1, strict=True):
            assert isinstance(metric, MetricCollection)
            point[name] = 100 * float(metric.compute()["top1"])
            metric.reset()
            self.log(f"top1_{name}", point[name], prog_bar=True, sync_dist=True)
        if not self.trainer.sanity_checking:
            self.history = [p for p in self.history if p["epoch"] < self.current_epoch] + [point]

    def kept_names(self) -> set[str]:
        """State-dict keys that a checkpoint holds."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return trained | {f"model.{name}" for name in kept_buffers(self.model)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the frozen backbone out."""
        kept = self.kept_names()
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in kept}
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another method or selection."""
        check_checkpoint(self.kept_names(), checkpoint["state_dict"])
        self.history = list(checkpoint.get("history", []))


def check_checkpoint(expected: set[str], state: Mapping[str, Tensor]) -> None:
    """Compares the keys of a checkpoint with those that the run trains.

    Raises:
        UserError: naming a key that differs.
    """
    if odd := sorted(expected ^ set(state)):
        raise UserError(f"the checkpoint is of another selection or method: it differs in {', '.join(odd[:3])}")
