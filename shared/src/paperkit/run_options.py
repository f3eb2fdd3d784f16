"""The options by which every `train` command names its run folder, and what they mean."""

from pathlib import Path
from typing import Any

from paperkit.errors import UserError
from paperkit.runs import RunFolder

RUN_OPTIONS = ("config", "name", "root", "resume")
"""Their names, which are no settings of the run itself."""


def add_run_options(parser: Any) -> None:
    """Declare `--config`, `--name`, `--root` and `--resume` on a jsonargparse parser."""
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument("--name", type=str | None, default=None, help="name of the run folder (default: the time)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        default=None,
        help="continue a run folder; alone: the newest unfinished run",
    )


def open_run(root: str, paper: str, name: str | None, resume: str | None) -> RunFolder:
    """A new run folder, or the one that is to be continued.

    Args:
        resume: None for a new one, `newest`, a run's name, or the path of its folder.

    Raises:
        UserError: if the name is taken, or there is nothing to continue.
    """
    if resume is None:
        return RunFolder.create(root, paper, name)
    if resume != "newest":
        return RunFolder.open(resume if Path(resume).is_dir() else Path(root) / paper / resume)
    newest = RunFolder.newest(root, paper, finished=False)
    if newest is None:
        raise UserError(f"no unfinished run in {Path(root) / paper}")
    return newest
