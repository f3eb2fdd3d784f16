"""Draw the figures of a run again, from its metrics.json and, where it was measured, its latency.json."""

import csv
import json
from pathlib import Path
from typing import Any

from paperkit.errors import UserError


def add_arguments(parser: Any) -> None:
    parser.add_argument("run", nargs="?", type=str, default=None, help="run folder (default: the newest finished run)")
    parser.add_argument("--zoo", type=str | None, default=None, help="CSV of other models: name,flops,top1[,params]")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")


def run(arguments: Any) -> int:
    from paperkit.files.runs import resolve_run
    from paperkit.results.metrics import Metrics
    from snnet.figures.stitches import draw, draw_latency, draw_zoo, points_of

    folder, _ = resolve_run(arguments.run, arguments.root, "snnet")
    if folder is None:
        raise UserError(f"{arguments.run} is not a run folder")
    metrics, target = Metrics.read(folder.path / "metrics.json"), folder.path / "figures"
    paths = draw(metrics, target)
    measured = folder.path / "latency.json"
    if measured.exists():
        times = json.loads(measured.read_text())
        paths += draw_latency(points_of(metrics), {int(i): t for i, t in times["milliseconds"].items()}, target)
    if arguments.zoo:
        paths.append(draw_zoo(points_of(metrics), read_zoo(Path(arguments.zoo)), target / "zoo.png"))
    for path in paths:
        print(path)
    return 0


def read_zoo(path: Path) -> list[tuple[str, float, float]]:
    """(name, multiply-adds, top-1 in percent) of each line of a CSV with a heading."""
    try:
        with path.open(newline="") as file:
            return [(row["name"], float(row["flops"]), float(row["top1"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} needs the columns name, flops, top1 with numbers in the last two ({error})") from None
