"""What training and evaluation on real data leave: weights in folders, metrics.json, and a table on the screen."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ecoformer.models.pvt import PVTv2
from ecoformer.models.twins import Twins
from ecoformer.training.encoder import Encoder
from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import table
from paperkit.training.trainer import best_state

ENERGY_UNIT = "G pJ"


def save_last_and_best(network: PVTv2 | Twins | Encoder, run: Path) -> None:
    """`model/` with the last weights, which the network keeps, and `best/` with those of the highest validation."""
    network.save_pretrained(run / "model")
    best = best_state(run)
    if best is not None:
        last = {key: value.clone() for key, value in network.state_dict().items()}
        network.load_state_dict(best)
        network.save_pretrained(run / "best")
        network.load_state_dict(last)


def record(
    folder: Path,
    arm: str,
    found: Mapping[str, float],
    seed: int,
    seconds: float,
    energy: Iterable[tuple[str, float]] = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `folder/metrics.json`: percentages by metric, billions of pJ by name; other rows that it has stay."""
    rows = [Row(arm, metric, [value], "%") for metric, value in found.items()]
    rows += [Row(arm, name, [value], ENERGY_UNIT) for name, value in energy]
    fresh, more, path = {(row.arm, row.metric) for row in rows}, dict(extra or {}), folder / "metrics.json"
    if path.is_file():
        before = Metrics.read(path)
        rows = [row for row in before.rows if (row.arm, row.metric) not in fresh] + rows
        more = {**before.extra, **more}
    if rows:
        Metrics("ecoformer", [seed], seconds, rows, extra=more).write(path)


def told(title: str, found: Mapping[str, float], energy: Iterable[tuple[str, float]] = ()) -> None:
    """Print what an evaluation found."""
    lines = [(name, value, "%") for name, value in found.items()]
    table(lines + [(name, value, ENERGY_UNIT) for name, value in energy], ("metric", "value", "unit"), title)
