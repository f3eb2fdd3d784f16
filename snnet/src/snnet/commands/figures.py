"""Draw the figures of a run again, from its metrics.json."""

from typing import Any

ROOT = "runs"


def add_arguments(parser: Any) -> None:
    parser.add_argument("run", nargs="?", type=str, default=None, help="run folder (default: the newest finished run)")


def run(arguments: Any) -> int:
    from paperkit.errors import UserError
    from paperkit.metrics import Metrics
    from paperkit.runs import resolve_run
    from snnet.figures import draw

    folder, _ = resolve_run(arguments.run, ROOT, "snnet")
    if folder is None:
        raise UserError(f"{arguments.run} is not a run folder")
    for path in draw(Metrics.read(folder.path / "metrics.json"), folder.path / "figures"):
        print(path)
    return 0
