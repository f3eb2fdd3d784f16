"""Many videos to arrays: several processes, a bar, whole files, and a start that goes on where another ended."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from paperkit.errors import UserError
from paperkit.files.atomic import remove_stale_temporaries
from stpt.training.frames import INDEX, Entry, read_entries, write_array, write_index
from stpt.training.videos import VideoFile, check_sampling

INDEX_EVERY = 5.0
"""Seconds between two writings of the index: what was made after the last one is made again after a kill."""


@dataclass
class Made:
    """What came of it.

    Attributes:
        done, kept: videos that were made, and that were there.
        seconds, frames: of all of them together.
        bad: videos that could not be read, and why.
    """

    done: int = 0
    kept: int = 0
    seconds: float = 0.0
    frames: int = 0
    bad: dict[str, str] = field(default_factory=dict)


def prepare(
    files: dict[str, Path], folder: Path, options: dict[str, Any], processes: int = 0, again: bool = False
) -> Made:
    """Write the arrays of `files` (by name) and their index to `folder`.

    Args:
        options: of `VideoFile`.
        processes: videos at a time; 0 takes one a core.
        again: make also what is there.

    Raises:
        UserError: impossible options, a folder whose arrays were made with others, or that cannot be written.
    """
    check_sampling(**options)
    made_with = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    made_with["resize"] = "pillow bicubic"
    entries: dict[str, Entry] = {}
    if (folder / INDEX).exists():
        entries, before = read_entries(folder)
        if before != made_with and not again:
            differing = [key for key in made_with if before.get(key) != made_with[key]]
            said = ", ".join(f"{key} {before.get(key)} (now {made_with[key]})" for key in differing)
            raise UserError(f"{folder} was prepared with {said}; give the same, another --output, or --again")
    remove_stale_temporaries(folder)
    made = Made()
    there = {} if again else {name: entry for name, entry in entries.items() if _is_there(folder, name, entry, files)}
    todo = {name: path for name, path in files.items() if name not in there}
    made.kept = len(files) - len(todo)
    entries = {name: entry for name, entry in entries.items() if not again and name not in todo}
    saved = time.monotonic()
    try:
        with _bar(len(files), made.kept) as advance:
            for name, outcome in _outcomes(todo, folder, options, processes):
                if isinstance(outcome, Entry):
                    entries[name], made.done = outcome, made.done + 1
                else:
                    made.bad[name] = outcome
                if time.monotonic() - saved > INDEX_EVERY:
                    write_index(folder, entries, made_with)
                    saved = time.monotonic()
                advance(name if isinstance(outcome, Entry) else f"{name}: {outcome}")
    finally:  # also what was made before an interruption
        if entries:
            write_index(folder, entries, made_with)
    infos = [entries[name].info for name in files if name in entries]
    made.seconds, made.frames = sum(i.duration for i in infos), sum(i.sample_count for i in infos)
    return made


def _is_there(folder: Path, name: str, entry: Entry, files: dict[str, Path]) -> bool:
    """Whether an array is there for the file as it is now."""
    array, source = folder / f"{name}.npy", files.get(name)
    if source is None or not array.exists() or not source.exists():
        return False
    return (source.name, source.stat().st_size) == (entry.source, entry.bytes)


def _one(path: Path, array: Path, options: dict[str, Any]) -> Entry | str:
    """Makes one array; what is wrong with a video is told, what is wrong with the folder is raised."""
    try:
        video = VideoFile(path, **options, threads=1)
        write_array(array, video)
        return Entry(video.info, path.name, path.stat().st_size)
    except UserError as error:
        if str(error).startswith("cannot write"):
            raise
        return str(error).removeprefix(f"{path} ")


def _outcomes(
    todo: dict[str, Path], folder: Path, options: dict[str, Any], processes: int
) -> Iterator[tuple[str, Entry | str]]:
    """(name, entry or fault) in the order in which they are done."""
    count = min(processes or os.cpu_count() or 1, len(todo))
    if count <= 1:
        for name, path in todo.items():
            yield name, _one(path, folder / f"{name}.npy", options)
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: dict[Future[Entry | str], str] = {
            pool.submit(_one, path, folder / f"{name}.npy", options): name for name, path in todo.items()
        }
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            raise UserError("a process ended by itself, perhaps for want of memory; try --processes 1") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _bar(total: int, done: int) -> Iterator[Any]:
    """Tells how far it is: a bar with the time left on a terminal, a line for each video elsewhere."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("videos", total=total, completed=done)

        def advance(said: str) -> None:
            nonlocal done
            done += 1
            bar.advance(task)
            if not console.is_terminal:
                print(f"{done} of {total}: {said}", flush=True)

        yield advance
