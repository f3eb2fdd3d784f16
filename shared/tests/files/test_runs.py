"""Run folders and whole-or-nothing writes: what is found, what is refused, what a dead process leaves behind."""

import dataclasses
import enum
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paperkit.errors import Interrupted, UserError
from paperkit.files import atomic as atomic_files
from paperkit.files.atomic import remove_stale_temporaries, write_atomic
from paperkit.files.runs import RUN_VARIABLE, RunFolder, plain, process_rank, resolve_run, weights_of


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables, whatever ran the tests; the run that `create` publishes is forgotten afterwards."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(RUN_VARIABLE, "")


def forked(work: Callable[[], None]) -> int:
    """The process id of a child that does ``work`` and ends without running any of the parent's clean-up."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_user_error_is_one_line() -> None:
    assert str(UserError("first\n  second\n\nthird ")) == "first second third"
    assert (str(Interrupted("a\nb", 143)), Interrupted("a", 143).exit_code) == ("a b", 143)


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_atomic(path, "übung")
    assert path.read_bytes() == "übung".encode()
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("point", ["write", "fsync", "replace"])
def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if point == "write":

        def write_half() -> None:
            with atomic_files.atomic_file(path) as file:
                file.write(b"half of the new con")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write_half()
    else:
        monkeypatch.setattr(atomic_files.os, point, fail)
        with pytest.raises(UserError, match=rf"^cannot write {path}: No space left on device$"):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_notices_a_file_that_came_out_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system that reports its failure after the rename."""
    path = tmp_path / "file"
    sync = atomic_files._sync_folder
    monkeypatch.setattr(atomic_files, "_sync_folder", lambda folder: (os.truncate(path, 2), sync(folder)))
    with pytest.raises(UserError, match=r"5 bytes were written and 2 are there"):
        write_atomic(path, "12345")


def test_write_into_a_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file/below: (Not a directory|File exists)"):
        write_atomic(tmp_path / "file" / "below", "x")


def test_stale_temporaries(tmp_path: Path) -> None:
    dead = forked(lambda: None)
    os.waitpid(dead, 0)
    (tmp_path / "deep").mkdir()
    stale = [tmp_path / f"a.ckpt.tmp-{dead}", tmp_path / "deep" / f"b.tmp-{os.getpid()}"]
    kept = [tmp_path / "a.ckpt", tmp_path / f"c.tmp-{os.getppid()}", tmp_path / "notes.tmp-old"]
    for path in stale + kept:
        path.write_text("x")
    assert remove_stale_temporaries(tmp_path) == stale
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


def test_create_names_runs_and_refuses_a_taken_name(tmp_path: Path) -> None:
    first, second = RunFolder.create(tmp_path, "snnet"), RunFolder.create(tmp_path, "snnet")
    assert first.path.parent == second.path.parent == tmp_path / "snnet"
    assert first.path != second.path, "two runs of the same second"
    named = RunFolder.create(tmp_path, "snnet", "mine")
    assert named.path == tmp_path / "snnet" / "mine"
    with pytest.raises(UserError, match=r"snnet/mine exists; continue it with --resume mine"):
        RunFolder.create(tmp_path, "snnet", "mine")
    (tmp_path / "snnet" / "empty").mkdir()
    assert RunFolder.create(tmp_path, "snnet", "empty").path.name == "empty"


def test_create_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"cannot make the run folder .*runs/spt/x: (Not a directory|File exists)"):
        RunFolder.create(tmp_path / "runs", "spt", "x")


def test_newest(tmp_path: Path) -> None:
    assert RunFolder.newest(tmp_path, "spt") is None
    runs = [RunFolder.create(tmp_path, "spt", name) for name in ("z", "m", "a")]
    RunFolder.create(tmp_path, "bivit", "other")
    (tmp_path / "spt" / "not-a-run").mkdir()
    runs[0].mark_finished()
    runs[1].mark_finished()

    def newest(finished: bool | None) -> str | None:
        run = RunFolder.newest(tmp_path, "spt", finished)
        return run and run.path.name

    assert (newest(None), newest(True), newest(False)) == ("a", "m", "a")
    runs[2].mark_finished()
    assert newest(False) is None


def test_open(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "spt", "x")
    assert RunFolder.open(str(run.path)).path == run.path
    with pytest.raises(UserError, match=r"no run folder at .*/absent$"):
        RunFolder.open(tmp_path / "absent")
    with pytest.raises(UserError, match=r"is not a run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(UserError, match=r"that is a file"):
        RunFolder.open(run.path / "started")


def test_resolve_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run in .*spt; train one first"):
        resolve_run(None, tmp_path, "spt")
    run = RunFolder.create(tmp_path, "spt", "x")
    with pytest.raises(UserError, match=r"no finished run"):
        resolve_run(None, tmp_path, "spt")
    run.mark_finished()
    file = run.path / "seed0" / "checkpoints" / "last.ckpt"
    write_atomic(file, "x")
    stranger = tmp_path / "weights.pth"
    stranger.write_text("x")

    def resolved(ckpt: Path | None) -> tuple[Path | None, Path | None]:
        found, path = resolve_run(ckpt, tmp_path, "spt")
        return found and found.path, path

    assert resolved(None) == (run.path, None)
    assert resolved(run.path) == (run.path, None)
    assert resolved(file) == (run.path, file)
    assert resolved(stranger) == (None, stranger)
    with pytest.raises(UserError, match=r"no checkpoint at .*absent"):
        resolve_run(tmp_path / "absent", tmp_path, "spt")


def test_config_round_trip(tmp_path: Path) -> None:
    class Kind(enum.Enum):
        FULL = 1

    @dataclasses.dataclass
    class Options:
        root: Path
        sizes: tuple[int, ...]

    run = RunFolder.create(tmp_path, "spt", "x")
    run.write_config({"options": Options(Path("a/b"), (1, 2)), "kind": Kind.FULL, "lr": 1e-3, "on": True, "none": None})
    expected = {"options": {"root": "a/b", "sizes": [1, 2]}, "kind": "FULL", "lr": 1e-3, "on": True, "none": None}
    assert run.read_config() == expected
    assert list(run.read_config()) == list(expected), "the order of the options is kept"
    with pytest.raises(TypeError, match=r"builtins\.complex has no plain form"):
        plain({"z": 1j})


@pytest.mark.parametrize(
    ("content", "message"), [(b"a: [1", "cannot read"), (b"- 1", "not a mapping of options"), (b"\xff", "cannot read")]
)
def test_broken_config(tmp_path: Path, content: bytes, message: str) -> None:
    run = RunFolder.create(tmp_path, "spt", "x")
    with pytest.raises(UserError, match=r"config\.yaml: No such file"):
        run.read_config()
    (run.path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        run.read_config()


def test_lock_excludes_another_process_until_it_is_killed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "spt", "x")
    ready, tell = os.pipe()

    def hold() -> None:
        with run.lock():
            (run.path / f"last.ckpt.tmp-{os.getpid()}").write_text("half")
            os.write(tell, b"x")
            time.sleep(60)

    holder = forked(hold)
    os.read(ready, 1)
    with pytest.raises(UserError, match=rf"{run.path} is in use by process {holder}; "), run.lock():
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert list(run.path.glob("*.tmp-*"))
    with run.lock():
        assert not list(run.path.glob("*.tmp-*")), "the next holder removes what was half written"
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()}"), run.lock():
            pass
    with run.lock():
        pass


def test_ranks_share_the_folder_of_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path, "spt")
    assert process_rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(RUN_VARIABLE, str(run.path))
    assert process_rank() == 1
    with run.lock(), run.lock():  # rank 0 holds it for all
        joined = RunFolder.create(tmp_path, "spt")
    assert joined.path == run.path
    monkeypatch.setenv(RUN_VARIABLE, "")
    assert RunFolder.create(tmp_path, "spt", "named").path == tmp_path / "spt" / "named"
    with pytest.raises(UserError, match=r"needs a name"):
        RunFolder.create(tmp_path, "spt")


def test_weights_of_a_run_or_what_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "spt", "x")
    with pytest.raises(UserError, match=r"x has no model/ folder: the run is not finished$"):
        weights_of(run, None)
    (run.path / "model").mkdir()
    for named in (None, str(run.path)):
        assert weights_of(run, named) == run.path / "model"
    assert weights_of(run, str(run.path / "best")) == run.path / "best"
    assert weights_of(None, "some.pth") == Path("some.pth")
    with pytest.raises(UserError, match="no weights: name a run"):
        weights_of(None, None)
