"""What a supervised image classifier needs besides its model: mixing of images, losses, distillation, accuracy.

Functions only; each paper owns its LightningModule and calls them. Shapes: B batch, K classes.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from paperkit.errors import UserError

Distillation = Literal["none", "hard", "soft"]


def make_mixup(mixup: float, cutmix: float, switch_prob: float, smoothing: float, num_classes: int) -> Mixup | None:
    """timm's batch-wise mixup and CutMix, or None when both are 0 (Zhang et al., ICLR 2018; Yun et al., ICCV 2019).

    The result is called as `images, targets = mix(images, labels)`: images (B, C, H, W) are left as they are, so that
    a step may run twice on a batch (`paperkit.training.switches.SAM`); targets are (B, K) with the labels
    smoothed by `smoothing`. It draws from numpy's global generator, which `paperkit.data.resumable.SeedStep`
    seeds. B must be even.

    Args:
        mixup, cutmix: parameters alpha of the two Beta distributions, 0 switches one off; DeiT: 0.8 and 1.0.
        switch_prob: share of batches that get CutMix when both are on; DeiT: 0.5.
        smoothing: label smoothing; DeiT: 0.1.
        num_classes: K.
    """
    if mixup < 0 or cutmix < 0:
        raise UserError(f"mixup {mixup} and cutmix {cutmix} must not be negative")
    if mixup == 0 and cutmix == 0:
        return None
    return _Mixup(mixup, cutmix, switch_prob=switch_prob, label_smoothing=smoothing, num_classes=num_classes)


class _Mixup(Mixup):
    """timm's, which mixes in place, on a copy."""

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return super().__call__(x.clone(), target)


def classification_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy, mean over the batch.

    Args:
        logits: (B, K).
        target: labels (B,), smoothed by `smoothing` here; or probabilities (B, K), which mixup has smoothed already
            and which are taken as they are.
        smoothing: label smoothing for labels.
    """
    return F.cross_entropy(logits, target, label_smoothing=smoothing if target.ndim == 1 else 0.0)


def distillation_loss(
    base: Tensor,
    student: Tensor,
    teacher: Tensor,
    kind: Distillation = "hard",
    alpha: float = 0.5,
    tau: float = 1.0,
) -> Tensor:
    """(1 - alpha) base + alpha KD, DeiT's mixture (Touvron et al., ICML 2021, section 4).

    Hard: KD is the cross entropy with the teacher's choice. Soft: KD = tau^2 * sum KL(softmax(teacher / tau) ||
    softmax(student / tau)) / (B K); the authors' code divides by the number of logits B K, not by B.

    Args:
        base: loss against the labels, a scalar.
        student, teacher: logits (B, K); the teacher's carry no gradient.
        kind: `none` returns `base`.
        alpha: weight of KD.
        tau: temperature of the soft kind.
    """
    if kind == "none":
        return base
    if kind == "hard":
        distilled = F.cross_entropy(student, teacher.argmax(dim=1))
    elif kind == "soft":
        log_student, log_teacher = F.log_softmax(student / tau, dim=1), F.log_softmax(teacher.detach() / tau, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
        distilled = divergence * (tau * tau) / student.numel()
    else:
        raise UserError(f"distillation kind {kind!r} is unknown; choose none, hard or soft")
    return (1 - alpha) * base + alpha * distilled


def accuracy_metrics(num_classes: int, prefix: str = "") -> MetricCollection:
    """`{prefix}acc1` and, with more than five classes, `{prefix}acc5`: shares of all images (0 to 1), summed over
    ranks.

    Update with logits (B, K) and labels (B,). The shares count every image once (micro average), like ImageNet's top-1.
    """
    top = (1, 5) if num_classes > 5 else (1,)
    return MetricCollection(
        {f"acc{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in top}, prefix=prefix or None
    )


@torch.no_grad()
def measured_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    on: torch.device,
    autocast: str | None = None,
) -> dict[str, float]:
    """`test/acc1` and, with more than five classes, `test/acc5` in %, of a model that is put into eval mode on `on`.

    Args:
        batches: images (B, C, H, W) and labels (B,).
        num_classes: K.
        autocast: name of a lower precision, such as bfloat16; None computes in the weights' own.
    """
    found = accuracy_metrics(num_classes, "test/").to(on)
    model = model.to(on).eval()
    kind = getattr(torch, autocast or "float32")
    for images, labels in batches:
        with torch.autocast(on.type, dtype=kind, enabled=autocast is not None):
            logits = model(images.to(on))
        found.update(logits.float(), labels.to(on))
    return {key: 100 * float(value) for key, value in found.compute().items()}
