"""Draw the figures of a run again from its metrics.json: `spt figures RUN` (default: the newest finished run)."""

from __future__ import annotations

from typing import Any

from paperkit.errors import UserError


def add_arguments(parser: Any) -> None:
    """Options."""
    parser.add_argument("run", nargs="?", default=None, help="run folder (default: the newest finished run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")


def run(arguments: Any) -> None:
    """Draws and names the files."""
    from paperkit.metrics import Metrics
    from paperkit.runs import resolve_run
    from spt.figures import draw

    folder, _ = resolve_run(arguments.run, arguments.root, "spt")
    if folder is None:
        raise UserError(f"{arguments.run} lies in no run folder")
    metrics = Metrics.read(folder.path / "metrics.json")
    if "seeds" not in metrics.extra:
        raise UserError(
            f"{folder.path} is a run on real data; its curves are in TensorBoard: {folder.path / 'tensorboard'}"
        )
    for path in draw(metrics, folder.path / "figures"):
        print(path)
