"""Joint training of all stitches: one configuration (or several) a step, drawn at random (paper, section 3.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paperkit.training.classification import Distillation, accuracy_metrics, make_mixup
from paperkit.training.optim import OptimConfig, build, clip_gradients, lightning_dict, step_schedule
from paperkit.training.savings import Savings
from paperkit.training.switches import hardest, sharpened
from snnet.method.losses import StitchLoss
from snnet.method.sampling import IdStream, Sampling
from snnet.method.stitching import StitchedNetwork, mean_logits


@dataclass
class TrainingConfig:
    """What a joint training step does.

    Args:
        stitches_per_step: configurations that a step runs, each on an equal share of the batch. The authors' eight
            processes with an id each are 8 here.
        sampling: how ids are drawn, see `sampling.IdStream`.
        best_cuts: train the anchors and only so many stitches, those whose activations least squares fits best (an
            extension; 0 trains all).
        full_tuning: tune anchors and stitching layers; False tunes stitching layers and class tokens only.
        distillation: none, hard or soft, from the teacher.
        alpha: weight of the distillation term.
        tau: temperature of soft distillation.
        smoothing: label smoothing.
        mixup, cutmix, switch_prob: timm's mixing of images; 0 and 0 switch it off.
        anchor_lr_scale, stitch_lr_scale: factors on the scheduled learning rate.
        decay_stitch_bias: decay the biases of stitching layers as well (the released Swin recipe does).
        validated: configurations beside the anchors whose mean accuracy chooses the best checkpoint, spread evenly.
    """

    stitches_per_step: int = 1
    sampling: Sampling = "uniform"
    best_cuts: int = 0
    full_tuning: bool = True
    distillation: Distillation = "none"
    alpha: float = 0.5
    tau: float = 1.0
    smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    switch_prob: float = 0.5
    anchor_lr_scale: float = 1.0
    stitch_lr_scale: float = 1.0
    decay_stitch_bias: bool = False
    validated: int = 5


class Apart(list[nn.Module]):
    """Models that are not part of the trained one: in no checkpoint, in no optimiser, shared by its copies (EMA)."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Apart":
        return self


class JointTraining(pl.LightningModule):
    """Trains a stitched network.

    Args:
        network: the network; its state is saved under `network.`.
        config: what a step does.
        optim: optimiser and schedule.
        num_classes: K.
        seed: run seed; rank r draws its ids from the stream of `seed + r`, so every process runs stitches of its own.
        ids: the configurations to train (None: all). One id alone is ordinary training of that anchor or stitch.
        macs: multiply-adds of every configuration, for the sampling extensions.
        teacher: a frozen model that gives logits (B, K) for the mixed images.
        savings: switches that act in a step; those of the network are the caller's to apply.
    """

    def __init__(
        self,
        network: StitchedNetwork,
        config: TrainingConfig,
        optim: OptimConfig,
        num_classes: int,
        seed: int = 0,
        ids: Sequence[int] | None = None,
        macs: Sequence[int] | None = None,
        teacher: nn.Module | None = None,
        savings: Savings | None = None,
    ) -> None:
        super().__init__()
        self.network, self.config, self.optim, self.seed = network, config, optim, seed
        self.savings = savings or Savings()
        self.ids = list(range(network.num_configurations)) if ids is None else [network.check_id(i) for i in ids]
        self.macs = None if macs is None else [macs[i] for i in self.ids]
        self.loss = StitchLoss(config.smoothing, config.distillation, config.alpha, config.tau)
        self.mix = make_mixup(config.mixup, config.cutmix, config.switch_prob, config.smoothing, num_classes)
        self._teacher = Apart()
        if teacher is not None and config.distillation != "none":
            self._teacher.append(teacher.eval().requires_grad_(False))
        self.validated = validated_ids(network, config.validated) if ids is None else self.ids[:8]
        self.accuracy = nn.ModuleDict({str(i): accuracy_metrics(num_classes) for i in self.validated})
        if not config.full_tuning:
            for name, parameter in network.named_parameters():
                parameter.requires_grad_("stitch_layers" in name or "cls" in name)

    def on_fit_start(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device)
        self.stream = IdStream(self.ids, self.seed + self.global_rank, self.config.sampling, self.macs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One step on images (B, 3, H, W) and labels (B,)."""
        images, target = batch
        if self.mix is not None:
            images, target = self.mix(images, target)
        config_ids = self.step_ids(batch_idx)
        images, target = hardest(self.network, partial(self.losses, config_ids[0]), images, target, self.savings)
        teacher = None
        if self._teacher:
            with torch.no_grad():
                teacher = self._teacher[0](images)
        loss = self.loss(self.network, images, target, config_ids, teacher)
        # Only where somebody looks: logging costs a third of a step on tiny networks.
        if self.trainer.loggers or self.trainer.progress_bar_callback:
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/config_id", float(config_ids[0]))
        return loss

    def losses(self, config_id: int, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image (B,) under one stitch, by which `keep_hardest` chooses."""
        return cross_entropy(mean_logits(self.network(images, config_id)), labels, reduction="none")

    def step_ids(self, batch_idx: int) -> list[int]:
        """The ids of a batch, by its position in the run: a resumed run goes on with the same stream."""
        position = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        return self.stream.at_step(position, self.config.stitches_per_step)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        for config_id, logits in self.network.forward_many(images, self.validated):
            self.accuracy[str(config_id)].update(mean_logits(logits), labels)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """`val/acc1`, which chooses the best checkpoint: the mean over the anchors and a few fixed stitches."""
        found = {i: self.accuracy[str(i)].compute()["acc1"] for i in self.validated}  # type: ignore[operator]
        for metric in self.accuracy.values():
            metric.reset()  # type: ignore[operator]
        self.log_dict({f"val/acc1_{i}": value for i, value in found.items()}, sync_dist=False)
        self.log("val/acc1", torch.stack(list(found.values())).mean(), prog_bar=True, sync_dist=False)

    def on_train_epoch_end(self) -> None:
        """Average the BatchNorm statistics of all processes, as the authors' ResNet recipe does."""
        if self.trainer.world_size > 1:
            distribute_bn(self.network, self.trainer.world_size, reduce=True)

    def configure_optimizers(self) -> Any:
        epochs = self.trainer.max_epochs or 1
        self.trainer.fit_loop.setup_data()  # so that the number of batches is known
        # Not `estimated_stepping_batches`: `max_steps` ends a run early, it does not squeeze the schedule.
        updates = -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)
        batch = getattr(self.trainer.datamodule, "batch_size", 1)  # type: ignore[attr-defined]
        global_batch = batch * self.trainer.world_size * self.trainer.accumulate_grad_batches
        groups = parameter_groups(self.network, self.config, self.optim.weight_decay)
        optimizer, schedule = build(groups, self.optim, updates, epochs, global_batch)
        return lightning_dict(sharpened(optimizer, self.savings), schedule)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        step_schedule(scheduler, self.trainer)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_gradients(self, optimizer, self.optim, gradient_clip_val, gradient_clip_algorithm)


def validated_ids(network: StitchedNetwork, stitches: int) -> list[int]:
    """The anchors and `stitches` configurations spread evenly over the rest."""
    anchors, total = len(network.anchors), network.num_configurations
    stitches = min(stitches, total - anchors)
    return [*range(anchors), *(anchors + (2 * i + 1) * (total - anchors) // (2 * stitches) for i in range(stitches))]


def parameter_groups(network: StitchedNetwork, config: TrainingConfig, weight_decay: float) -> list[dict[str, Any]]:
    """Groups by part (anchors, stitching layers) and decay, as in the released recipes.

    1-D tensors and biases are not decayed; class token, position embedding and Swin's relative position tables are,
    because the authors' wrapper hides the anchors' own exceptions from the optimiser.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            stitch = name.startswith("stitch_layers.")
            decayed = (parameter.ndim > 1 and not name.endswith(".bias")) or (stitch and config.decay_stitch_bias)
            groups.setdefault((stitch, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "lr_scale": config.stitch_lr_scale if stitch else config.anchor_lr_scale,
        }
        for (stitch, decayed), parameters in groups.items()
    ]
