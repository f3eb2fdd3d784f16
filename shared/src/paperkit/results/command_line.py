"""The command line that runs, as results name it: `snnet train --seeds 5`."""

import os
import shlex
import sys
from collections.abc import Sequence

_noted: list[str] = []


def note_command(paper: str, argv: Sequence[str]) -> None:
    """Called by the command line of a paper before the verb starts."""
    _noted[:] = [paper, *argv]


def command_line() -> str:
    """The command as a user would type it; of another program, its name and arguments."""
    return shlex.join(_noted or [os.path.basename(sys.argv[0]), *sys.argv[1:]])
