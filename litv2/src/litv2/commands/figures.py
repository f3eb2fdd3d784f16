"""Draw the figures of an embedded run again, from its metrics.json."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("run", nargs="?", type=str, default=None, help="run folder (default: the newest finished run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")


def run(arguments: Any) -> int:
    from litv2.figures import draw
    from paperkit.errors import UserError
    from paperkit.metrics import Metrics
    from paperkit.runs import resolve_run

    folder, _ = resolve_run(arguments.run, arguments.root, "litv2")
    if folder is None:
        raise UserError(f"{arguments.run} is not a run folder")
    metrics = Metrics.read(folder.path / "metrics.json")
    if "costs" not in metrics.extra:
        raise UserError(f"{folder.path} is no embedded run; its curves are in TensorBoard")
    for path in draw(metrics, folder.path / "figures"):
        print(path)
    return 0
