"""Run as a script: has imported what the commands import, and forks a child for each request line.

It never trains itself, so a child may (autograd's threads do not survive a fork). Answers with the child's process id,
and with its exit code when it has ended.
"""

import importlib
import json
import os
import resource
import sys

import torch

from paperkit.command.cli import main as run_verb
from spt.cli import VERBS

for heavy in ("paperkit.command.seeds", "spt.experiment.run", "spt.training.lists", "spt.training.segmentation"):
    importlib.import_module(heavy)
NOBODY = 65534


def work(request: dict) -> int:
    """The command in its folder, with its limits; its exit code."""
    log = open(request["log"], "w")  # noqa: SIM115  (the process ends with it)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    os.chdir(request["folder"])
    torch.set_num_threads(1)
    if request["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    if request["nobody"] and os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return run_verb("spt", "", VERBS, request["arguments"])


def main() -> None:
    """Until the input ends."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = work(json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
