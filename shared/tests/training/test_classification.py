"""Losses against their formulas written out, mixing against its definition, accuracies against counting."""

import numpy as np
import pytest
import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.training.classification import (
    accuracy_metrics,
    classification_loss,
    distillation_loss,
    make_mixup,
    measured_accuracy,
)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    soft = torch.rand(6, 5, generator=generator, dtype=torch.float64)
    return {
        "student": student.requires_grad_(),
        "teacher": teacher,
        "labels": torch.randint(5, (6,), generator=generator),
        "soft": soft / soft.sum(1, keepdim=True),
    }


def test_cross_entropy_with_labels_and_with_probabilities(batch: dict[str, Tensor]) -> None:
    log_p = batch["student"] - batch["student"].exp().sum(1, keepdim=True).log()
    smooth = 0.9 * torch.eye(5, dtype=torch.float64)[batch["labels"]] + 0.1 / 5
    torch.testing.assert_close(
        classification_loss(batch["student"], batch["labels"], 0.1), -(smooth * log_p).sum(1).mean()
    )
    # Probabilities come smoothed from mixup: the smoothing must not be applied a second time.
    torch.testing.assert_close(
        classification_loss(batch["student"], batch["soft"], 0.1), -(batch["soft"] * log_p).sum(1).mean()
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("kind", "tau"), [("none", 1.0), ("hard", 1.0), ("hard", 3.0), ("soft", 1.0), ("soft", 3.0)])
def test_distillation_is_the_formula(batch: dict[str, Tensor], kind: str, tau: float, alpha: float) -> None:
    """Value and gradient to 1e-6, with softmax, logarithm and sums spelled out."""
    student, teacher = batch["student"], batch["teacher"]
    loss = distillation_loss(classification_loss(student, batch["soft"]), student, teacher, kind, alpha, tau)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, student)

    plain = student.detach().clone().requires_grad_()
    p, q = (torch.exp(z / tau) / torch.exp(z / tau).sum(1, keepdim=True) for z in (teacher, plain))
    log_s = (plain.exp() / plain.exp().sum(1, keepdim=True)).log()
    kd = {
        "none": -(batch["soft"] * log_s).sum(1).mean(),
        "hard": -sum(log_s[row, int(teacher[row].argmax())] for row in range(6)) / 6,
        "soft": tau**2 * (p * (p.log() - q.log())).sum() / 30,
    }[kind]
    expected = (1 - alpha) * -(batch["soft"] * log_s).sum(1).mean() + alpha * kd
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, plain)[0], rtol=1e-6, atol=1e-9)


def test_teacher_gets_no_gradient_and_kind_is_checked(batch: dict[str, Tensor]) -> None:
    teacher = batch["teacher"].requires_grad_()
    distillation_loss(batch["student"].sum(), batch["student"], teacher, "soft").backward()
    assert teacher.grad is None
    with pytest.raises(UserError, match="'sof' is unknown; choose none, hard or soft"):
        distillation_loss(torch.zeros(()), batch["student"], teacher, "sof")  # type: ignore[arg-type]


def test_mixup_blends_images_and_targets_by_the_same_share() -> None:
    """Image i is blended with image B - 1 - i; constant images show the share, which the targets must have as well."""
    np.random.seed(3)
    mix = make_mixup(mixup=0.8, cutmix=0.0, switch_prob=0.5, smoothing=0.1, num_classes=4)
    assert mix is not None
    labels = torch.tensor([0, 1, 2, 3])
    images, targets = mix(labels.float().view(4, 1, 1, 1).expand(4, 1, 8, 8).clone(), labels)
    share = 1 - images[0, 0, 0, 0].item() / 3
    assert 0 < share < 1
    one_hot = torch.full((4, 4), 0.025) + 0.9 * torch.eye(4)
    torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))


def test_cutmix_share_is_the_area() -> None:
    np.random.seed(0)
    mix = make_mixup(mixup=0.0, cutmix=1.0, switch_prob=0.5, smoothing=0.0, num_classes=2)
    assert mix is not None
    images, targets = mix(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8).clone(), torch.tensor([0, 1]))
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert 0 < images[0].mean() < 1
    torch.testing.assert_close(targets[0, 1], images[0].mean())


def test_no_mixing_is_none_and_nonsense_is_refused() -> None:
    assert make_mixup(0.0, 0.0, 0.5, 0.1, 10) is None
    with pytest.raises(UserError, match="mixup -1"):
        make_mixup(-1, 0.0, 0.5, 0.1, 10)


def test_accuracies_count_images() -> None:
    """Labels of very unequal frequency: a mean over classes would give another number than the share of all images."""
    logits = torch.arange(6.0).repeat(10, 1)  # the largest is class 5, the smallest class 0
    labels = torch.tensor([5, 5, 5, 5, 4, 4, 1, 0, 0, 0])
    metrics = accuracy_metrics(6, prefix="val_")
    metrics.update(logits[:3], labels[:3])
    metrics.update(logits[3:], labels[3:])
    assert {name: round(value.item(), 6) for name, value in metrics.compute().items()} == {
        "val_acc1": 0.4,
        "val_acc5": 0.7,
    }
    assert set(accuracy_metrics(5)) == {"acc1"}


def test_measured_accuracy_counts_over_all_batches_in_eval_mode() -> None:
    """Logits that name the brightest of six channels; every other label is off by one."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9)).train()
    labels = torch.arange(7) % 6
    images = torch.eye(6)[labels].view(7, 6, 1, 1)
    told = torch.where(torch.arange(7) % 2 == 0, labels, (labels + 1) % 6)
    batches = [(images[:4], told[:4]), (images[4:], told[4:])]
    found = measured_accuracy(model, batches, 6, torch.device("cpu"))
    assert found["test/acc1"] == pytest.approx(100 * 4 / 7) and not model.training
    assert set(found) == {"test/acc1", "test/acc5"}
    assert measured_accuracy(model, batches, 6, torch.device("cpu"), "bfloat16") == found
