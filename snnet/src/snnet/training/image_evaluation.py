"""Every configuration of a trained network on a validation set: resumable, then one table and its figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from paperkit.data.images import ImageData
from paperkit.results.metrics import Claim, Metrics, Row
from snnet.deployment.source import Source
from snnet.training.evaluation import ResultFile, StitchResult, evaluate, pareto_front

GROUP = 24  # configurations per pass over the data: their shared prefixes run once, and a kill costs one pass at most


def evaluate_images(
    source: Source, data: ImageData, config_ids: Sequence[int], path: Path, subject: str
) -> list[StitchResult]:
    """Accuracy of each configuration; those that `path` holds already are not run again.

    Args:
        path: the file with one JSON line per configuration.
        subject: what is evaluated, so that a file of other weights is not continued.
    """
    data.setup()
    kept = ResultFile(path, {"weights": subject, "data": str(data.root), "dataset": data.dataset})
    points = source.points()
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
            found = evaluate(source.network, batches(), group, data.num_classes)
            kept.add(
                StitchResult(i, points[i].flops, points[i].params, acc1, acc5, loss, count)
                for i, (acc1, acc5, loss, count) in found.items()
            )
    return [kept.results[i] for i in config_ids]


def summarise_images(
    source: Source, results: Sequence[StitchResult], data: ImageData, seed: int, seconds: float
) -> Metrics:
    """metrics.json of an evaluation on real data."""
    names = source.network.anchor_names
    network = source.network
    front = set(pareto_front((r.cfg_id, r.flops, r.acc1) for r in results))
    rows = []
    for result in results:
        arm = f"{result.cfg_id} {network.configurations[result.cfg_id].describe(names)}"
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
                "name": c.describe(names),
                "macs": result.flops,
                "params": result.params,
                "acc1": result.acc1,
                "cut": [c.anchors[0], *c.cuts[0]] if c.cuts else None,
                "pareto": result.cfg_id in front,
            }
        )
    extra = {
        "data": f"{data.dataset}, {results[0].images if results else 0} validation images",
        "anchors": names,
        "staged": any(c.stage is not None for c in network.configurations),
        "configurations": configurations,
    }
    return Metrics("snnet", "snnet eval", [seed], seconds, rows, claims, extra)
