"""Run as a module: imports what a paper's commands import, then forks a child for each that is asked for.

Words: `MAIN [MODULE ...]`. Each line of its input is a request, each line of its output the answer: `start` is answered
with the child's process id, `poll` with its exit code, or null while it runs. It never trains itself, so that a child
may: autograd's threads do not survive a fork.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

from paperkit.testing.commands import run_main

NOBODY = 65534


def work(main: str, request: dict[str, Any]) -> int:
    """The command in its folder, under its limits; its exit code."""
    import torch

    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in enumerate(request["logs"], 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    torch.set_num_threads(1)
    exec(request["patch"], {"__name__": "patch"})
    if request["limit"]:
        # What this child or its own children import first would else be cached cut short, for every later process.
        sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    if request["nobody"] and os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return run_main(main, request["words"])


def main() -> None:
    """Answers until its input ends; children that still run are killed then."""
    entry, *modules = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):  # some libraries print as they are imported; answers go to stdout
        for module in ("torch", "paperkit.command.cli", entry.partition(":")[0], *modules):
            importlib.import_module(module)
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        answer = None
        if "start" in request:
            answer = os.fork()
            if answer == 0:
                code = 99
                try:
                    code = work(entry, request["start"])
                except BaseException:
                    traceback.print_exc()
                finally:
                    with contextlib.suppress(OSError, ValueError):
                        sys.stdout.flush()
                        sys.stderr.flush()
                    os._exit(code)
            running.add(answer)
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            if pid:
                running.discard(pid)
                answer = os.waitstatus_to_exitcode(status)
        print(json.dumps(answer), flush=True)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
