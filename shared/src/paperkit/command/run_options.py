"""The options by which every `train` command names its run folder, and what they mean."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, plain

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


def find_run(root: str, paper: str, name: str | None, resume: str | None) -> RunFolder:
    """As `open_run`, for a command that works in the folder.

    Raises:
        UserError: also if the run is finished, so that there is nothing to continue.
    """
    run = open_run(root, paper, name, resume)
    if resume is not None and run.finished:
        raise UserError(f"{run.path} is finished; `{paper} eval --ckpt {run.path}` shows it")
    return run


def parse_run(parser: Any, paper: str, argv: Sequence[str]) -> tuple[Any, RunFolder | None]:
    """The options of a run and, with `--resume`, the folder that it continues.

    A continued run has the settings of its folder's config.yaml, and those of the command line over them; so they need
    not be given again, not even the required ones.

    Raises:
        UserError: if there is nothing to continue, or the run is finished.
    """
    words, rest, resume = list(argv), [], None
    while words:
        word = words.pop(0)
        if word == "--resume":
            resume = words.pop(0) if words and not words[0].startswith("-") else "newest"
        elif word.startswith("--resume="):
            resume = word.partition("=")[2]
        else:
            rest.append(word)
    if resume is None:
        return parser.parse_args(rest), None
    root = rest[rest.index("--root") + 1] if "--root" in rest[:-1] else "runs"
    run = find_run(root, paper, None, resume)
    return parser.parse_args(["--config", str(run.path / "config.yaml"), *rest]), run


def write_settings(run: RunFolder, parser: Any, arguments: Any) -> None:
    """Write the resolved options and the environment into a new run folder."""
    content = json.loads(parser.dump(arguments, skip_none=False, format="json"))
    run.write_config(plain({key: value for key, value in content.items() if key not in RUN_OPTIONS}))
    run.write_environment()


@contextmanager
def run_in_folder(
    parser: Any, paper: str, argv: Sequence[str], check: Callable[[Any], None] = lambda arguments: None
) -> Iterator[tuple[RunFolder, Any, bool]]:
    """Parse, open and lock the run folder, and mark the run finished if the block ends well.

    Args:
        check: called with the options before there is a folder; what it refuses leaves none behind.

    Yields:
        The folder, the options, and whether the run is continued.
    """
    arguments, continued = parse_run(parser, paper, argv)
    check(arguments)
    run = continued or open_run(arguments.root, paper, arguments.name, None)
    with run.lock():
        write_settings(run, parser, arguments)  # of a continued run too: what is given beside --resume counts
        print(f"run folder {run.path}", flush=True)
        yield run, arguments, continued is not None
        run.mark_finished()
