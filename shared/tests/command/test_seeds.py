"""Seeds in processes of their own, run as a command runs them: results, failures, signals, and a parent that dies."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paperkit.command.seeds import run_seeds
from paperkit.errors import UserError

COMMAND = """
import json, sys
from paperkit.command.cli import guarded
from paperkit.command.seeds import run_seeds

def work():
    function, seeds, processes = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    results = run_seeds(f"seedwork:{function}", seeds, {"folder": "."}, 10, processes, "--resume here")
    print("results", json.dumps(results))

if __name__ == "__main__":
    sys.exit(guarded(work))
"""
# What the processes run. `trains` does as a training does: told to stop, it finishes its step, saves and leaves.
SEEDWORK = """
import os, signal, sys, time
from pathlib import Path
import torch
from paperkit.errors import Interrupted, UserError

class Odd(Exception):
    pass

def squares(seed, advance, folder):
    for _ in range(10):
        advance(1)
    return {"square": seed**2, "threads": torch.get_num_threads(), "process": os.getpid()}

def trains(seed, advance, folder, steps=1200):
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    Path(folder, f"pid-{seed}").write_text(str(os.getpid()))
    for step in range(steps):
        time.sleep(0.05)
        advance(1)
        if told:
            time.sleep(0.2)
            Path(folder, f"saved-{seed}").touch()
            raise Interrupted("interrupted", 143)

def fails(seed, advance, folder):
    if seed != 1:
        return trains(seed, advance, folder)
    while not Path(folder, "pid-0").exists():
        time.sleep(0.01)
    raise UserError("the loss is not finite at step 3")

def fails_oddly(seed, advance, folder):
    raise Odd("two\\nlines")

def is_killed(seed, advance, folder):
    if seed != 1:
        return trains(seed, advance, folder)
    while not Path(folder, "pid-0").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(seed, advance, folder):
    os._exit(7)

def cannot_be_pickled(seed, advance, folder):
    return lambda: seed
"""
CONTINUE = "finished work is kept, continue with --resume here"
SLOW_IMPORT = """
import time
from pathlib import Path
Path("importing").touch()
time.sleep(5)
"""
TORCH = """
def set_num_threads(count):
    global get_num_threads
    get_num_threads = lambda: count
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command in a process group of its own, as a shell does; what is left of the group ends with the test.

    Unless told otherwise with a `torch` of three lines: importing the true one takes seconds in each of these tests.
    """
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "seedwork.py").write_text(SEEDWORK)
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in" / "torch.py").write_text(TORCH)
    started: list[subprocess.Popen[str]] = []

    def run(function: str, seeds: list[int], processes: int = 2, true_torch: bool = False) -> subprocess.Popen[str]:
        modules = [str(tmp_path)] + ([] if true_torch else [str(tmp_path / "stand-in")])
        started.append(
            subprocess.Popen(
                [sys.executable, "command.py", function, json.dumps(seeds), str(processes)],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(modules)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def pids(folder: Path, seeds: int) -> list[int]:
    """The processes of all seeds, when each works."""
    files = [folder / f"pid-{seed}" for seed in range(seeds)]
    assert wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has asked for its exit code counts as ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return sys.platform == "linux"
    return stat.rpartition(")")[2].split()[0] in "ZX"


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors.splitlines()


def test_every_seed_returns_its_own_result(start: Callable[..., subprocess.Popen[str]]) -> None:
    code, output, errors = finish(start("squares", [5, 2, 9], true_torch=True))
    assert (code, errors) == (0, [])
    found = json.loads(output.splitlines()[-1].removeprefix("results "))
    assert {seed: one["square"] for seed, one in found.items()} == {"5": 25, "2": 4, "9": 81}
    assert list(found) == ["5", "2", "9"]  # in the order asked for, whoever was first
    assert {one["threads"] for one in found.values()} == {1}
    assert len({one["process"] for one in found.values()}) == 3
    for seed in (5, 2, 9):
        assert re.search(rf"^seed {seed}: 100 % after \d+ s", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("fails", "error: seed 1: the loss is not finite at step 3"),
        ("is_killed", f"error: the process of seed 1 died of SIGKILL, memory ran out?; {CONTINUE}"),
    ],
)
def test_a_seed_that_fails_ends_the_others_after_their_step(
    function: str, line: str, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    code, output, errors = finish(start(function, [0, 1, 2]))
    assert (code, errors) == (1, [line])
    assert (tmp_path / "saved-0").exists()
    assert not (tmp_path / "pid-2").exists()  # it was waiting, and was never begun
    assert "results" not in output


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("fails_oddly", r"error: seed 3: Odd: two lines"),
        ("leaves", f"error: the process of seed 3 died with exit code 7; {CONTINUE}"),
        ("cannot_be_pickled", r"error: seed 3: (AttributeError|PicklingError): .*pickle.*"),
        ("no_such_function", r"error: seed 3: AttributeError: module 'seedwork' has no attribute 'no_such_function'"),
    ],
)
def test_an_error_is_one_line(function: str, line: str, start: Callable[..., subprocess.Popen[str]]) -> None:
    code, _, errors = finish(start(function, [3], processes=1))
    assert code == 1
    assert len(errors) == 1 and re.fullmatch(line, errors[0]), errors


@pytest.mark.parametrize(
    ("number", "to_the_group", "code", "name"),
    [
        (signal.SIGTERM, False, 143, "SIGTERM"),
        (signal.SIGTERM, True, 143, "SIGTERM"),
        (signal.SIGINT, True, 130, "Ctrl-C"),
    ],
)
def test_a_signal_lets_every_seed_save_and_leave(
    number: int, to_the_group: bool, code: int, name: str, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """SIGTERM to the command alone (a scheduler), to all of its processes (the same), Ctrl-C (a terminal: to all)."""
    process = start("trains", [0, 1, 2])
    children = pids(tmp_path, 2)
    (os.killpg if to_the_group else os.kill)(process.pid, number)
    found, _, errors = finish(process)
    assert (found, errors) == (
        code,
        [f"error: interrupted by {name}; finished work is kept, continue with --resume here"],
    )
    assert all(gone(pid) for pid in children)
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert not (tmp_path / "pid-2").exists()


def test_a_second_signal_does_not_wait(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("trains", [0, 1])
    children = pids(tmp_path, 2)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)  # no step will end
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    assert all(gone(pid) for pid in children)
    assert not list(tmp_path.glob("saved-*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_imports_run_ends_at_once(
    number: int, code: int, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_IMPORT)
    (tmp_path / "seedwork.py").write_text("import slow")
    process = start("squares", [0])
    assert wait_for((tmp_path / "importing").exists)
    begin = time.monotonic()
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == code
    assert time.monotonic() - begin < 3
    assert len(finish(process)[2]) == 1


def test_the_seeds_die_with_a_parent_that_is_killed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("trains", [0, 1])
    children = pids(tmp_path, 2)
    process.kill()
    assert wait_for(lambda: all(gone(pid) for pid in children), 10)
    assert not list(tmp_path.glob("saved-*"))


def test_the_seeds_end_when_nobody_reads_the_output(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """`snnet train | head -1`: the next line cannot be written; no process is left behind."""
    process = start("trains", [0, 1])
    children = pids(tmp_path, 2)
    assert process.stdout
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert wait_for(lambda: all(gone(pid) for pid in children), 10)


@pytest.mark.parametrize("processes", [0, -2])
def test_no_process_at_all_is_refused(processes: int) -> None:
    with pytest.raises(UserError, match=f"processes is {processes}; it must be 1 or more"):
        run_seeds("os:getcwd", [0], {}, 1, processes)


def test_no_seed_is_no_work() -> None:
    assert run_seeds("os:getcwd", [], {}, 1) == {}
