"""An experiment's seeds side by side: one process a seed, one thread a process, one progress bar each.

The parent imports nothing heavy. On Linux the processes are forked from a server that has imported the experiment's module
once, so that five seeds do not import torch five times. A signal to the parent is passed on; every process then ends at its
next step with a checkpoint to resume from. If the parent dies, so do they, and no orphan writes into the run folder.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from paperkit.errors import Interrupted, UserError

Advance = Callable[[int], None]
"""Tells the parent that so many steps are done."""


@dataclass
class _Running:
    process: Any
    pipe: Connection
    task: TaskID


def run_seeds(
    work: str,
    seeds: Sequence[int],
    arguments: dict[str, Any],
    steps: int,
    processes: int | None = None,
    resume_with: str = "--resume",
) -> dict[int, Any]:
    """Run an experiment for every seed and return what each returned.

    Args:
        work: `package.module:function`, called as `function(seed, advance, **arguments)` with torch set to one thread. It
            calls `advance(n)` after every n steps (of `steps`), and returns something that can be pickled.
        seeds: the seeds.
        arguments: further arguments, which must pickle.
        steps: steps of one seed, for the estimate of the time left.
        processes: how many run at once; None for one a core.
        resume_with: what the user adds to the command to continue, for the message.

    Raises:
        UserError: the first error of a seed, or that its process died; the other seeds are stopped at their next step.
        Interrupted: after a signal, when every process has saved and left.
    """
    processes = processes or _cores()
    module, function = work.split(":")
    context = _context(module)
    waiting, results = list(seeds), dict.fromkeys(seeds)
    running: dict[int, _Running] = {}
    failure: Exception | None = None
    with _progress() as (progress, say), _signals_passed_on(running) as received:
        while running or (waiting and not (failure or received)):
            while waiting and len(running) < processes and not (failure or received):
                seed = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_child, args=(module, function, seed, arguments, sender), name=f"seed {seed}"
                )
                process.start()
                sender.close()
                running[seed] = _Running(process, receiver, progress.add_task(f"seed {seed}", total=steps))
            for pipe in wait([one.pipe for one in running.values()], timeout=1.0):
                seed, one = next((s, o) for s, o in running.items() if o.pipe is pipe)
                kind, value = _receive(one)
                if kind == "steps":
                    progress.advance(one.task, value)
                    say(seed, progress.tasks[progress.task_ids.index(one.task)])
                    continue
                one.process.join()
                del running[seed]
                if kind == "done":
                    results[seed] = value
                elif failure is None and not received:
                    failure = _failure(seed, kind, value, one.process.exitcode, resume_with)
                    _stop(running, signal.SIGTERM)
    if received:
        number = received[0]
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        raise Interrupted(f"interrupted by {name}; finished work is kept, continue with {resume_with}", 128 + number)
    if failure:
        raise failure
    return results


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context(module: str) -> Any:
    """Forked from a server that holds the module's imports where that is safe (Linux), fresh interpreters elsewhere."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _child(module: str, function: str, seed: int, arguments: dict[str, Any], pipe: Connection) -> None:
    """The life of one process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to everyone; the parent's word is enough
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    from paperkit.cli import silence_libraries

    silence_libraries()
    import torch

    torch.set_num_threads(1)
    last, pending = time.monotonic(), 0

    def advance(steps: int) -> None:
        nonlocal last, pending
        pending += steps
        if time.monotonic() - last > 0.2:
            pipe.send(("steps", pending))
            last, pending = time.monotonic(), 0

    try:
        result = getattr(importlib.import_module(module), function)(seed, advance, **arguments)
        pipe.send(("steps", pending))
        pipe.send(("done", result))
    except (KeyboardInterrupt, Interrupted):
        pipe.send(("interrupted", ""))
    except UserError as error:
        pipe.send(("error", str(error)))
    except Exception as error:
        if os.environ.get("PAPERKIT_TRACEBACK"):
            raise
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def _receive(one: _Running) -> tuple[str, Any]:
    try:
        return one.pipe.recv()
    except (EOFError, OSError):
        return "died", None


def _failure(seed: int, kind: str, value: Any, exit_code: int | None, resume_with: str) -> Exception:
    if kind == "error":
        return UserError(f"seed {seed}: {value}")
    cause = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    return UserError(f"the process of seed {seed} died ({cause}); finished work is kept, continue with {resume_with}")


def _stop(running: dict[int, _Running], number: int) -> None:
    for one in running.values():
        if one.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.process.pid, number)


@contextlib.contextmanager
def _signals_passed_on(running: dict[int, _Running]) -> Iterator[list[int]]:
    """Within the block SIGTERM and Ctrl-C are noted and passed to the seeds; a second one kills them."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        _stop(running, signal.SIGKILL if received else signal.SIGTERM)
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Progress, Callable[[int, Any], None]]]:
    """A bar a seed on a terminal; elsewhere a line at every quarter."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    told: dict[int, int] = {}

    def say(seed: int, task: Any) -> None:
        quarter = int(4 * task.percentage // 100)
        if not console.is_terminal and quarter > told.get(seed, 0):
            told[seed] = quarter
            left = f", about {task.time_remaining:.0f} s left" if task.time_remaining else ""
            print(f"seed {seed}: {task.percentage:.0f} % after {task.elapsed:.0f} s{left}", flush=True)

    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress, say
