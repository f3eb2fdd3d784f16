"""How far a stage is: a bar with the time left on a terminal, a line at every quarter elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int], None]
"""Tells that so many further parts are done."""


@contextmanager
def progress(stage: str, total: int, done: int = 0, silent: bool = False) -> Iterator[Advance]:
    """Within the block, the function that it gives is told of what is done.

    Args:
        stage: its name. total: parts of the whole stage. done: parts that an earlier start has done already.
        silent: of all processes but the first.
    """
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=silent or not console.is_terminal) as bar:
        number = bar.add_task(stage, total=total, completed=done)
        task = bar.tasks[number]
        told = int(4 * task.percentage // 100)

        def advance(parts: int) -> None:
            nonlocal told
            bar.advance(task.id, parts)
            quarter = int(4 * task.percentage // 100)
            if quarter > told and not silent and not console.is_terminal:
                told = quarter
                left = f", about {task.time_remaining:.0f} s left" if task.time_remaining else ""
                print(
                    f"{stage}: {task.completed:.0f} of {task.total:.0f} after {task.elapsed or 0:.0f} s{left}",
                    flush=True,
                )

        yield advance
