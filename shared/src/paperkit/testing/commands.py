"""A paper's command in a test: in this process, in a process of its own, or in a warm child that can be killed.

A suite's helper module makes one object:

    litv2 = Command("litv2", "litv2.cli:main", preload=("litv2.experiment.engine", "litv2.training.images"))

    litv2.here("eval", cwd=folder).out                             # in this process: no import to pay again
    litv2.refused("train", "--seeds", "0", cwd=folder)             # its one error line
    litv2.child("train", ..., cwd=folder, limit=50_000).line       # as on a full disk
    litv2.start("train", ..., cwd=folder).kill_when(run / "checkpoints" / "last.ckpt")
    litv2.child("train", ..., cwd=folder, patch=at_call("litv2.training.images:ImageTraining.training_step", 4),
                code=-9)                                           # killed at its fourth step
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

Condition = Path | Callable[[], bool]


@dataclass(frozen=True)
class Ended:
    """What came of a command.

    Attributes:
        code: exit code; minus the signal that killed it.
        out, err: what it printed.
    """

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error. AssertionError if there is none, a second one, or a traceback."""
        lines = self.err.splitlines()
        assert "Traceback" not in self.err and len(lines) == 1 and lines[0].startswith("error: "), self.err[-3000:]
        return lines[0]

    def with_code(self, code: int | None) -> "Ended":
        """Itself, if it ended with `code`; None stands for any."""
        assert code is None or self.code == code, f"exit code {self.code}\n{self.out[-3000:]}\n{self.err[-3000:]}"
        return self


def at_call(function: str, number: int = 1, number_of_signal: int = signal.SIGKILL) -> str:
    """A patch under which a process sends itself a signal at a call of a function, in place of or before its work.

    Args:
        function: `module:name` or `module:Class.method`, called as an attribute of that module or class.
        number: at which call, from 1 on. The call goes on after a signal that is handled.
    """
    module, _, path = function.partition(":")
    owner, _, name = path.rpartition(".")
    return f"""
import functools, importlib, os
_owner = importlib.import_module({module!r})
for _part in {owner.split(".") if owner else []!r}:
    _owner = getattr(_owner, _part)
_function, _calls = getattr(_owner, {name!r}), []
@functools.wraps(_function)
def _counted(*args, **options):
    _calls.append(1)
    if len(_calls) == {number}:
        os.kill(os.getpid(), {int(number_of_signal)})
    return _function(*args, **options)
setattr(_owner, {name!r}, _counted)
"""


class Command:
    """A paper's console script.

    Args:
        paper: its name.
        main: `module:function` of the entry point, which reads `sys.argv` and ends by `sys.exit`.
        preload: modules that warm children find imported.
    """

    def __init__(self, paper: str, main: str, preload: tuple[str, ...] = ()) -> None:
        self.paper, self.main, self.preload = paper, main, preload

    def here(self, *words: str | Path, cwd: Path | None = None, code: int | None = 0) -> Ended:
        """Runs the command in this process.

        Args:
            cwd: folder to run it in; the present one without.
            code: the exit code that it must end with; None for any.
        """
        with _folder(cwd), _clean_environment(), _captured() as printed:
            found = run_main(self.main, [self.paper, *map(str, words)])
        return Ended(found, *printed).with_code(code)

    def refused(self, *words: str | Path, cwd: Path | None = None, code: int = 1) -> str:
        """The one error line of a command that must end with `code`."""
        return self.here(*words, cwd=cwd, code=code).line

    def process(
        self,
        *words: str | Path,
        cwd: Path,
        code: int | None = 0,
        patch: str = "",
        environment: Mapping[str, str] | None = None,
        seconds: float = 400,
    ) -> Ended:
        """Runs the console script in a process of its own, as a user does; starting it costs all its imports.

        Args:
            patch: lines of Python that run before the command, see `at_call`.
            environment: variables over those of this process.
        """
        arguments = [self.paper, *map(str, words)]
        script = [str(Path(sys.executable).parent / self.paper), *arguments[1:]]
        if patch:
            module, _, function = self.main.partition(":")
            text = f"{patch}\nimport sys\nsys.argv = {arguments!r}\nfrom {module} import {function}\n{function}()\n"
            script = [sys.executable, "-c", text]
        done = subprocess.run(
            script,
            cwd=cwd,
            capture_output=True,
            text=True,
            env={**clean_environment(), **(environment or {})},
            timeout=seconds,
        )
        return Ended(done.returncode, done.stdout, done.stderr).with_code(code)

    def start(
        self,
        *words: str | Path,
        cwd: Path,
        patch: str = "",
        limit: int = 0,
        nobody: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> "Child":
        """Starts the command in a warm child: a fork of a process that has imported torch and `preload`.

        Args:
            patch: lines of Python that the child runs before the command, see `at_call`.
            limit: bytes that no file may grow beyond, which a write notices as it notices a full disk; 0 is no limit.
            nobody: as a user who may write nothing (only root can become one; others stay who they are).
            environment: variables over those of this process.
        """
        logs = tempfile.NamedTemporaryFile("r+"), tempfile.NamedTemporaryFile("r+")  # noqa: SIM115  (the child's)
        request = {
            "words": [self.paper, *map(str, words)],
            "folder": str(cwd),
            "logs": [log.name for log in logs],
            "patch": patch,
            "limit": limit,
            "nobody": nobody,
            "environment": dict(environment or {}),
        }
        server = _server(self.main, self.preload)
        return Child(server, server.ask(start=request), logs)

    def child(
        self,
        *words: str | Path,
        cwd: Path,
        code: int | None = 0,
        patch: str = "",
        limit: int = 0,
        nobody: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Runs the command in a warm child to its end; arguments as for `start`, `code` as for `here`."""
        started = self.start(*words, cwd=cwd, patch=patch, limit=limit, nobody=nobody, environment=environment)
        return started.wait().with_code(code)


class Child:
    """A command that runs in a warm child."""

    def __init__(self, server: "_Server", pid: int, logs: "tuple[IO[str], ...]") -> None:
        self._server, self.pid, self._logs = server, pid, logs
        self._code: int | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self._code is None:
            self._code = self._server.ask(poll=self.pid)
        return self._code is None

    def wait(self, seconds: float = 400) -> Ended:
        """What came of it; it is killed, and AssertionError raised, if it takes longer than `seconds`."""
        end = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"not done after {seconds} s:\n{self._printed()}")
            time.sleep(0.005)
        assert self._code is not None
        return Ended(self._code, *(Path(log.name).read_text() for log in self._logs))

    def kill(self, number: int = signal.SIGKILL, group: bool = True) -> None:
        """Sends a signal to it, and to the processes that it started unless `group` is false."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def kill_when(
        self,
        condition: Condition,
        number: int = signal.SIGKILL,
        *,
        group: bool = True,
        after: float = 0.0,
        seconds: float = 120,
    ) -> Ended:
        """Sends a signal as soon as a file is there or a function returns true, and waits for the end.

        Args:
            after: seconds between the condition and the signal.
            seconds: AssertionError if the condition does not come within these, or the command ends before it.
        """
        holds = condition.exists if isinstance(condition, Path) else condition
        end = time.monotonic() + seconds
        while not holds():
            assert self.running, f"it ended with {self._code} before {condition} came:\n{self._printed()}"
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"{condition} did not come within {seconds} s:\n{self._printed()}")
            time.sleep(0.002)
        time.sleep(after)
        assert self.running, f"it ended with {self._code} before it could be killed:\n{self._printed()}"
        self.kill(number, group)
        ended = self.wait()
        if number == signal.SIGKILL:
            ended.with_code(-signal.SIGKILL)
        return ended

    def _printed(self) -> str:
        return "\n".join(Path(log.name).read_text()[-3000:] for log in self._logs)


def file_changed(path: Path) -> Callable[[], bool]:
    """A condition: the file is there and is not the one that is there now."""

    def state() -> tuple[int, int] | None:
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    before = state()
    return lambda: (now := state()) is not None and now != before


def any_file(folder: Path, pattern: str) -> Callable[[], bool]:
    """A condition: a file of that name (with `*` for parts of it) lies somewhere below the folder."""
    return lambda: next(iter(folder.rglob(pattern)), None) is not None


def run_main(main: str, words: list[str]) -> int:
    """The exit code of an entry point that is called as if `words` had been typed."""
    module, _, function = main.partition(":")
    before, sys.argv = sys.argv, list(words)
    try:
        code = getattr(importlib.import_module(module), function)()
    except SystemExit as error:
        code = error.code
    finally:
        sys.argv = before
        sys.stdout.flush()
        sys.stderr.flush()
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return int(code or 0)


def clean_environment() -> dict[str, str]:
    """This process's variables without those of a run, with one thread and a wide terminal."""
    left_out = ("PAPERKIT_", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    return {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "200"}


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    before = dict(os.environ)
    for key in [key for key in before if key.startswith("PAPERKIT_")]:
        del os.environ[key]
    os.environ["COLUMNS"] = "200"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _folder(cwd: Path | None) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(before if cwd is None else cwd)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Standard output and error of this process and of those that it starts, in a list after the block."""
    printed: list[str] = []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        streams = sys.stdout, sys.stderr
        for stream in streams:
            stream.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (closed below)
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        try:
            yield printed
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            sys.stdout, sys.stderr = streams
            for number, old in enumerate(kept, 1):
                os.dup2(old, number)
                os.close(old)
            for file in (out, err):
                file.seek(0)
                printed.append(file.read())


class _Server:
    """The process whose forks are the warm children; one for each process of the test run."""

    def __init__(self, main: str, preload: tuple[str, ...]) -> None:
        words = [sys.executable, "-m", "paperkit.testing.fork_server", main, *preload]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment()
        )
        atexit.register(self.process.kill)

    def ask(self, **request: object) -> int:
        """Sends a request and returns the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the process that makes warm children ended with {self.process.wait()}"
        return json.loads(answer)


_server = cache(_Server)
