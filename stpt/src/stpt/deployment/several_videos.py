"""Several video files one after the other, with live progress; what could not be read is told at the end."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paperkit.errors import UserError

Advance = Callable[[int], object]
"""Told how many further windows are done."""
Work = Callable[[str, Path, Callable[[int], Advance]], object]
"""A video's name and file; and what says how many windows it has, and gives the function to tell."""


def for_each_video(paths: Sequence[str], work: Work) -> None:
    """Call `work` for every file, under a bar for each on a terminal.

    Raises:
        UserError: two files of one name, before anything is done; and at the end the first file that could not be used,
            and the number of those that could not.
    """
    files = [Path(path) for path in paths]
    if twice := sorted({file.stem for file in files if sum(file.stem == other.stem for other in files) > 1}):
        raise UserError(f"two videos are named {twice[0]}; give them one by one, each with its own --output")
    faults: list[str] = []
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def begin(name: str, windows: int) -> Advance:
            task = bars.add_task(name, total=windows)
            return lambda done: bars.advance(task, done)

        for file in files:
            try:
                work(file.stem, file, partial(begin, file.stem))
            except UserError as error:
                faults.append(str(error))
                if len(files) > 1:
                    print(f"left out: {error}", flush=True)
    if faults:
        raise UserError(faults[0] if len(files) == 1 else f"{len(faults)} of {len(files)} videos failed: {faults[0]}")
