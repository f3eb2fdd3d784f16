"""Accuracy of every configuration, with shared beginnings of their routes computed once.

All 71 DeiT configurations cost 540.8 G multiply-adds an image one by one and 430.5 G with shared prefixes.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.runs import write_atomic
from paperkit.training.classification import accuracy_metrics, classification_loss
from snnet.method.stitching import Logits, StitchedNetwork


@dataclass(frozen=True)
class StitchResult:
    """What was measured of one configuration. Accuracies in percent; `acc5` only with more than five classes."""

    cfg_id: int
    flops: int
    params: int
    acc1: float
    acc5: float | None
    loss: float
    images: int


def mean_logits(logits: Logits) -> Tensor:
    """(B, K): the logits, or the mean of a model's two heads."""
    return logits if isinstance(logits, Tensor) else (logits[0] + logits[1]) / 2


@torch.inference_mode()
def evaluate(
    network: StitchedNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    config_ids: Sequence[int],
    num_classes: int,
    on_batch: Callable[[int], None] | None = None,
) -> dict[int, tuple[float, float | None, float, int]]:
    """Accuracy and loss of several configurations in one pass over the data.

    Args:
        batches: images (B, 3, H, W) and labels (B,).
        on_batch: called with the number of images after each batch (for a progress bar).

    Returns:
        Per id (top-1 in percent, top-5 in percent or None, mean cross entropy, number of images).
    """
    training, device = network.training, next(network.parameters()).device
    network.eval()
    metrics = {i: accuracy_metrics(num_classes).to(device) for i in config_ids}
    losses, images_seen = dict.fromkeys(config_ids, 0.0), 0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        for config_id, raw in network.forward_many(images, config_ids):
            logits = mean_logits(raw).float()
            metrics[config_id].update(logits, labels)
            losses[config_id] += classification_loss(logits, labels).item() * len(labels)
        images_seen += len(labels)
        if on_batch:
            on_batch(len(labels))
    network.train(training)
    if not images_seen:
        raise UserError("the evaluation split holds no images")
    results = {}
    for config_id, metric in metrics.items():
        found = {name: 100 * value.item() for name, value in metric.compute().items()}
        results[config_id] = (found["acc1"], found.get("acc5"), losses[config_id] / images_seen, images_seen)
    return results


class ResultFile:
    """One JSON line per configuration, written as soon as it is known; an interrupted evaluation goes on after the
    last.

    The first line says what was evaluated, and a file of other weights or other data is not continued.
    """

    def __init__(self, path: Path, subject: dict[str, str | int]) -> None:
        self.path, self.subject = path, subject
        self.results: dict[int, StitchResult] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            subject, *entries = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.results = {entry["cfg_id"]: StitchResult(**entry) for entry in entries}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.path} cannot be continued ({error}); remove it to evaluate anew") from None
        if subject != self.subject:
            raise UserError(
                f"{self.path} holds results of {subject}, not of {self.subject}; remove it to evaluate anew"
            )

    def add(self, results: Iterable[StitchResult]) -> None:
        self.results |= {result.cfg_id: result for result in results}
        lines = [self.subject, *map(asdict, self.results.values())]
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in lines))


def pareto_front(points: Iterable[tuple[int, int, float]]) -> list[int]:
    """Ids that no cheaper (or equally cheap) configuration matches in accuracy, by rising multiply-adds.

    Args:
        points: (id, multiply-adds, accuracy).
    """
    front: list[int] = []
    best = float("-inf")
    for config_id, _, accuracy in sorted(points, key=lambda point: (point[1], -point[2])):
        if accuracy > best:
            front.append(config_id)
            best = accuracy
    return front
