"""The commands in a child of `fork_server.py`: quick to start, and it can be killed, limited, or another user."""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path


@cache
def _server() -> subprocess.Popen:
    """One for each process of the test run."""
    script = Path(__file__).with_name("fork_server.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    atexit.register(server.kill)
    return server


def _start(arguments: list[str], folder: Path, log: str, limit: int = 0, nobody: bool = False) -> int:
    request = {"arguments": arguments, "folder": str(folder), "log": log, "limit": limit, "nobody": nobody}
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def in_child(arguments: list[str], folder: Path, limit: int = 0, nobody: bool = False) -> tuple[int, str]:
    """Exit code and text of the command.

    Args:
        limit: bytes that no file can grow beyond, which a write notices as it notices a full disk; 0 is no limit.
        nobody: as a user who may write nothing there.
    """
    with tempfile.NamedTemporaryFile("r") as log:
        _start(arguments, folder, log.name, limit, nobody)
        return int(_server().stdout.readline()), log.read()


def killed_when(exists: Path, arguments: list[str], folder: Path, seconds: float = 120) -> None:
    """Starts the command and kills it with -9 as soon as a file is there."""
    with tempfile.NamedTemporaryFile("r") as log:
        pid = _start(arguments, folder, log.name)
        end = time.monotonic() + seconds
        while not exists.exists() and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        code = int(_server().stdout.readline())
        assert code == -signal.SIGKILL, f"it ended with {code} before it could be killed: {log.read()}"


def only_line(text: str) -> str:
    """The one error line; a traceback or a second line fails."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, text
    return lines[0]
