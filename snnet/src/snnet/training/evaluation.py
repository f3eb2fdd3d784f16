"""Accuracy of every configuration, with shared beginnings of their routes computed once.

All 71 DeiT configurations cost 540.8 G multiply-adds an image one by one and 430.5 G with shared prefixes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from paperkit.data.images import ImageData
from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.results.metrics import Claim, Metrics, Row
from paperkit.training.classification import accuracy_metrics, classification_loss
from snnet.method.budget import OperatingPoint, pareto_front
from snnet.method.stitching import StitchedNetwork, mean_logits

GROUP = 24  # configurations per pass over the data: their shared prefixes run once, and a kill costs one pass at most


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


@torch.inference_mode()
def evaluate(
    network: StitchedNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    config_ids: Sequence[int],
    num_classes: int,
) -> dict[int, tuple[float, float | None, float, int]]:
    """Accuracy and loss of several configurations in one pass over the data.

    Args:
        batches: images (B, 3, H, W) and labels (B,).

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
    network.train(training)
    if not images_seen:
        raise UserError("the evaluation split holds no images")
    results = {}
    for config_id, metric in metrics.items():
        found = {name: 100 * value.item() for name, value in metric.compute().items()}
        results[config_id] = (found["acc1"], found.get("acc5"), losses[config_id] / images_seen, images_seen)
    return results


class ResultFile:
    """One JSON line per configuration, written as soon as it is known; an interrupted evaluation goes on after it.

    The first line says what was evaluated: a file of other weights or other data is not continued.
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


def evaluate_images(
    network: StitchedNetwork,
    points: Sequence[OperatingPoint],
    data: ImageData,
    config_ids: Sequence[int],
    path: Path,
    subject: str,
) -> list[StitchResult]:
    """Accuracy of each configuration; those that `path` holds already are not run again.

    Args:
        points: the costs of every configuration.
        path: the file with one JSON line per configuration.
        subject: what is evaluated, so that a file of other weights is not continued.
    """
    data.setup()
    kept = ResultFile(path, {"weights": subject, "data": str(data.root), "dataset": data.dataset})
    missing = [i for i in config_ids if i not in kept.results]
    groups = [missing[i : i + GROUP] for i in range(0, len(missing), GROUP)]
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        images = len(data.val_dataloader())
        task = progress.add_task("evaluating", total=images * len(groups))

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in data.val_dataloader():
                yield batch
                progress.advance(task)

        for group in groups:
            found = evaluate(network, batches(), group, data.num_classes)
            kept.add(
                StitchResult(i, points[i].flops, points[i].params, acc1, acc5, loss, count)
                for i, (acc1, acc5, loss, count) in found.items()
            )
    return [kept.results[i] for i in config_ids]


def summarise_images(
    network: StitchedNetwork,
    points: Sequence[OperatingPoint],
    names: Sequence[str],
    results: Sequence[StitchResult],
    data: ImageData,
    seconds: float,
) -> Metrics:
    """metrics.json of an evaluation on real data.

    Args:
        points: the costs of every configuration.
        names: of the anchors.
    """
    front = set(pareto_front((r.cfg_id, r.flops, r.acc1) for r in results))
    rows = []
    for result in results:
        arm = f"{result.cfg_id} {points[result.cfg_id].name}"
        rows.append(Row(arm, "top-1", [result.acc1], "%"))
    anchors = [r for r in results if not network.configurations[r.cfg_id].cuts]
    inside = [r for r in results if network.configurations[r.cfg_id].cuts and r.cfg_id in front]
    claims = []
    if anchors and len(results) > len(anchors):
        claims.append(
            Claim(
                "Stitches lie on the Pareto front beside the anchors",
                False,
                bool(inside),
                f"{len(inside)} of {len(results) - len(anchors)} stitches, {len(front)} points in all",
            )
        )
    configurations = []
    for result in results:
        c = network.configurations[result.cfg_id]
        configurations.append(
            {
                "id": result.cfg_id,
                "name": points[result.cfg_id].name,
                "macs": result.flops,
                "params": result.params,
                "acc1": result.acc1,
                "cut": [c.anchors[0], *c.cuts[0]] if c.cuts else None,
                "pareto": result.cfg_id in front,
            }
        )
    extra = {
        "data": f"{data.dataset}, {results[0].images if results else 0} validation images",
        "anchors": list(names),
        "staged": any(c.stage is not None for c in network.configurations),
        "configurations": configurations,
    }
    return Metrics("snnet", [0], seconds, rows, claims, extra)
