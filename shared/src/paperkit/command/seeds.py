"""An experiment's seeds side by side: one process a seed, one thread a process, one progress bar each.

The parent imports nothing heavy. On Linux the processes are forked from a server that has imported the experiment's
module once, so that five seeds do not import torch five times. A signal to the parent is passed on; every process then
ends at its next step with a checkpoint to resume from. If the parent dies, so do they, and no orphan writes into the
run folder.
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
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from paperkit.command.cli import TRACEBACK_VARIABLE, silence_libraries
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
        work: `package.module:function`, called as `function(seed, advance, **arguments)` with torch set to one thread.
            It calls `advance(n)` after every n steps (of `steps`), and returns something that can be pickled.
        seeds: the seeds.
        arguments: further arguments, which must pickle.
        steps: steps of one seed, for the estimate of the time left.
        processes: how many run at once, 1 or more; None for one a core.
        resume_with: what the user adds to the command to continue, for the message.

    Raises:
        UserError: the first error of a seed, or that its process died, when the other seeds have been told to stop at
            their next step and have left; or that `processes` is less than 1.
        Interrupted: after a signal, when every process has saved and left.
    """
    processes = _cores() if processes is None else processes
    if processes < 1:
        raise UserError(f"processes is {processes}; it must be 1 or more")
    module, function = work.split(":")
    results = dict.fromkeys(seeds)
    waiting = list(results)
    running: dict[int, _Running] = {}
    failure: Exception | None = None
    with _progress() as (progress, say), _signals_passed_on(running, resume_with) as received:
        context = _context(module)
        while running or (waiting and not (failure or received)):
            while waiting and len(running) < processes and not (failure or received):
                seed = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_child, args=(module, function, seed, arguments, sender), name=f"seed {seed}"
                )
                try:
                    process.start()
                except (OSError, EOFError):
                    if received:  # the signal went to the whole group, and took the server before it could fork
                        break
                    raise
                sender.close()
                running[seed] = _Running(process, receiver, progress.add_task(f"seed {seed}", total=steps))
                if received:  # it came while the process was being started, and passed it by
                    _stop(running, signal.SIGTERM)
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
        raise _interrupted(received[0], resume_with)
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
    context.set_forkserver_preload(["paperkit.command.quiet", module])
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # inherited: a Ctrl-C during its imports is the parent's affair
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


def _child(module: str, function: str, seed: int, arguments: dict[str, Any], pipe: Connection) -> None:
    """The life of one process."""
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends these to everyone; the parent's word is enough
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not parent.is_alive():  # it left while the imports ran
        os._exit(1)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    silence_libraries()
    import torch

    torch.set_num_threads(1)
    last, pending = time.monotonic(), 0

    def tell(kind: str, value: Any) -> None:
        try:
            pipe.send((kind, value))
        except BrokenPipeError:  # the parent is gone, and no one is left to hear why this one ends
            os._exit(1)

    def advance(steps: int) -> None:
        nonlocal last, pending
        pending += steps
        if time.monotonic() - last > 0.2:
            tell("steps", pending)
            last, pending = time.monotonic(), 0

    try:
        result = getattr(importlib.import_module(module), function)(seed, advance, **arguments)
        tell("steps", pending)
        tell("done", result)
    except (KeyboardInterrupt, Interrupted):
        tell("interrupted", "")
    except UserError as error:
        tell("error", str(error))
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        tell("error", f"{type(error).__name__}: {error}")


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _receive(one: _Running) -> tuple[str, Any]:
    try:
        return one.pipe.recv()
    except (EOFError, OSError):
        return "died", None


def _failure(seed: int, kind: str, value: Any, exit_code: int | None, resume_with: str) -> Exception:
    if kind == "error":
        return UserError(f"seed {seed}: {value}")
    if exit_code is not None and exit_code < 0:
        number = -exit_code
        cause = f"died of {signal.Signals(number).name}" + (", memory ran out?" if number == signal.SIGKILL else "")
    else:
        cause = "was told to stop" if kind == "interrupted" else f"died with exit code {exit_code}"
    return UserError(f"the process of seed {seed} {cause}; finished work is kept, continue with {resume_with}")


def _stop(running: dict[int, _Running], number: int) -> None:
    for one in running.values():
        if one.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.process.pid, number)


def _interrupted(number: int, resume_with: str) -> Interrupted:
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return Interrupted(f"interrupted by {name}; finished work is kept, continue with {resume_with}", 128 + number)


@contextlib.contextmanager
def _signals_passed_on(running: dict[int, _Running], resume_with: str) -> Iterator[list[int]]:
    """Within the block SIGTERM, SIGHUP and Ctrl-C are noted and passed to the seeds; a second one kills them.

    While no seed runs (the imports take seconds) there is nothing to wait for, and the block is left at once.
    """
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if not running:
            raise _interrupted(number, resume_with)
        _stop(running, signal.SIGKILL if received else signal.SIGTERM)
        received.append(number)

    heard = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield received
    except BaseException:  # else the interpreter would wait at its end for processes that nobody listens to
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Progress, Callable[[int, Any], None]]]:
    """A bar a seed on a terminal; elsewhere a line at every quarter."""
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    told: dict[int, int] = {}

    def say(seed: int, task: Any) -> None:
        quarter = int(4 * task.percentage // 100)
        if not console.is_terminal and quarter > told.get(seed, 0):
            told[seed] = quarter
            left = f", about {task.time_remaining:.0f} s left" if task.time_remaining else ""
            print(f"seed {seed}: {task.percentage:.0f} % after {task.elapsed:.0f} s{left}", flush=True)

    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress, say
