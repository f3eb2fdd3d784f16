"""A toy paper's command in this process, in one of its own and in a warm child, with every way to be cut short."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from paperkit.testing.commands import Command, any_file, at_call, file_changed

TOY = """
import os, sys, time
from pathlib import Path

def step(number):
    Path(f"step-{number}").write_text("x" * 1000)

class Loop:
    def turn(self, number):
        step(number)

def main():
    words = sys.argv[1:]
    if words[0] == "say":
        print("out", *words[1:], "torch" in sys.modules)
        os.write(2, b"error: from below\\n")
        sys.exit(3)
    if words[0] == "two":
        print("error: one", file=sys.stderr)
        print("error: two", file=sys.stderr)
        sys.exit(1)
    if words[0] == "where":
        print(Path.cwd().name, sys.argv[0], os.environ.get("PAPERKIT_RUN"), os.environ.get("EXTRA"), os.getuid())
        return
    if words[0] == "crash":
        raise RuntimeError("not caught")
    try:
        for number in range(int(words[1])):
            Loop().turn(number)
            time.sleep(float(words[2]))
    except OSError as error:
        sys.exit(f"error: {error.strerror}")
    print("done")
"""
NOBODY = 65534


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy_paper.py").write_text(TOY)
    folder.chmod(0o755)
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(folder))  # for the process that makes warm children
    patch.syspath_prepend(str(folder))
    return Command("toy", "toy_paper:main")


def test_in_this_process(toy: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code, both streams (what a process writes past Python too), folder and words; nothing of it stays behind."""
    monkeypatch.setenv("PAPERKIT_RUN", "another")
    words, folder = list(sys.argv), Path.cwd()
    ended = toy.here("say", "a", code=3)
    assert ended.out == "out a True\n" and ended.line == "error: from below"
    assert toy.here("where", cwd=tmp_path).out.split()[:3] == [tmp_path.name, "toy", "None"]
    assert (sys.argv, Path.cwd(), os.environ["PAPERKIT_RUN"]) == (words, folder, "another")
    assert toy.refused("say", code=3) == "error: from below"


def test_more_or_less_than_one_line_is_no_line(toy: Command, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="error: two"):
        _ = toy.here("two", code=1).line
    with pytest.raises(AssertionError):
        _ = toy.here("where").line
    with pytest.raises(AssertionError, match="exit code 3"):
        toy.here("say")
    with pytest.raises(RuntimeError, match="not caught"):
        toy.here("crash")
    crashed = toy.child("crash", cwd=tmp_path, code=None)
    assert crashed.code != 0 and "Traceback" in crashed.err
    with pytest.raises(AssertionError, match="not caught"):
        _ = crashed.line


def test_in_a_warm_child(toy: Command, tmp_path: Path) -> None:
    ended = toy.child("where", cwd=tmp_path, environment={"EXTRA": "yes"})
    assert ended.out.split()[:4] == [tmp_path.name, "toy", "None", "yes"]
    assert toy.child("say", cwd=tmp_path, code=3).out == "out True\n"


def test_killed_when_a_file_is_there(toy: Command, tmp_path: Path) -> None:
    ended = toy.start("count", "1000", "0.01", cwd=tmp_path).kill_when(tmp_path / "step-2")
    assert ended.code == -signal.SIGKILL and "done" not in ended.out
    assert 3 <= len(list(tmp_path.glob("step-*"))) < 1000
    condition = file_changed(tmp_path / "step-1")
    assert not condition() and any_file(tmp_path.parent, "step-2")() and not any_file(tmp_path, "step-x*")()
    ended = toy.start("count", "1000", "0.01", cwd=tmp_path).kill_when(condition, signal.SIGTERM)
    assert ended.code == -signal.SIGTERM
    with pytest.raises(AssertionError, match=r"it ended with 0 before .* came:\s+done"):
        toy.start("count", "1", "0", cwd=tmp_path).kill_when(tmp_path / "never")
    with pytest.raises(AssertionError, match="did not come within"):
        toy.start("count", "1000", "1", cwd=tmp_path).kill_when(tmp_path / "never", seconds=0.1)


def test_two_children_at_once(toy: Command, tmp_path: Path) -> None:
    long = toy.start("count", "1000", "0.01", cwd=tmp_path)
    assert "done" in toy.child("count", "1", "0", cwd=tmp_path).out and long.running
    long.kill()
    assert long.wait().code == -signal.SIGKILL and not long.running


@pytest.mark.parametrize("function", ["toy_paper:step", "toy_paper:Loop.turn"])
def test_killed_at_a_call(function: str, toy: Command, tmp_path: Path) -> None:
    toy.child("count", "5", "0", cwd=tmp_path, patch=at_call(function, 3), code=-9)
    assert len(list(tmp_path.glob("step-*"))) == 2
    toy.process("count", "5", "0", cwd=tmp_path, patch=at_call(function, 4, signal.SIGTERM), code=-15)
    assert len(list(tmp_path.glob("step-*"))) == 3
    assert "done" in toy.here("count", "2", "0", cwd=tmp_path).out, "this process is not patched"


def test_on_a_full_disk_and_as_nobody(toy: Command, tmp_path: Path, others_folder: Path) -> None:
    assert toy.child("count", "3", "0", cwd=tmp_path, limit=500, code=1).line == "error: File too large"
    assert "done" in toy.child("count", "3", "0", cwd=tmp_path, limit=5000).out
    assert toy.child("count", "3", "0", cwd=others_folder, nobody=True, code=1).line == "error: Permission denied"
    if os.getuid() == 0:
        assert toy.child("where", cwd=others_folder, nobody=True).out.split()[-1] == str(NOBODY)


def test_every_test_has_one_thread_and_the_same_numbers() -> None:
    assert torch.get_num_threads() == 1
    first = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(3))
