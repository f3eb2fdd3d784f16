"""Draw the figures of a run again: `spt figures RUN` (default: the newest finished run).

For a run on real data from its sensitivities and delta; a sweep draws a line a task.
"""

from __future__ import annotations

from typing import Any

from paperkit.errors import UserError


def add_arguments(parser: Any) -> None:
    """Options."""
    parser.add_argument("run", nargs="?", default=None, help="run folder (default: the newest finished run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")


def run(arguments: Any) -> None:
    """Draws and names the files."""
    from paperkit.files.runs import resolve_run
    from paperkit.results.metrics import Metrics
    from spt.experiment.figures import draw

    folder, _ = resolve_run(arguments.run, arguments.root, "spt")
    if folder is None:
        raise UserError(f"{arguments.run} lies in no run folder")
    if "data" in folder.read_config():
        from spt.figures.of_a_run import draw_real

        drawn = draw_real(folder, folder.path / "figures")
    else:
        drawn = draw(Metrics.read(folder.path / "metrics.json"), folder.path / "figures")
    for path in drawn:
        print(path)
