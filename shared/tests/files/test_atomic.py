"""A write keeps what a user made of the place: links, permissions, devices; and each fault of it is one line."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from paperkit.errors import UserError
from paperkit.files.atomic import atomic_file, remove_stale_temporaries, write_atomic


def refused(path: Path, says: str) -> None:
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else None
    with pytest.raises(UserError) as caught:
        write_atomic(path, "new")
    assert str(caught.value) == f"cannot write {path}: {says}"
    if before is not None:
        assert sorted(path.parent.iterdir()) == before


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target, link, chain = tmp_path / "disk" / "real.json", tmp_path / "link.json", tmp_path / "chain.json"
    target.write_text("old")
    link.symlink_to("disk/real.json")
    chain.symlink_to(link)
    write_atomic(chain, "new")
    assert link.is_symlink() and chain.is_symlink() and not target.is_symlink()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["real.json"], "the rename is within the target's folder"


def test_a_link_to_nowhere_makes_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "later" / "x")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "later" / "x").read_text() == "new"


def test_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    write_atomic(tmp_path / "runs" / "a" / "x", "new")
    assert (tmp_path / "disk" / "a" / "x").read_text() == "new"


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match=r"^cannot write .*/a: Too many levels of symbolic links"):
        write_atomic(tmp_path / "a", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755, 0o444])
def test_permissions_of_the_old_file_are_kept(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(mode)
    write_atomic(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new"


def test_a_new_file_has_the_permissions_of_the_user(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_atomic(tmp_path / "x", "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_the_owner_of_the_old_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    os.chown(tmp_path / "x", 1234, 1235)
    write_atomic(tmp_path / "x", "new")
    assert ((tmp_path / "x").stat().st_uid, (tmp_path / "x").stat().st_gid) == (1234, 1235)


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    """A rename over a device or a pipe would remove it: /dev/null of a whole machine, for root."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    refused(tmp_path / "pipe", "it is not a regular file")
    refused(tmp_path / "folder", "Is a directory")
    refused(Path("/dev/null"), "it is not a regular file")
    refused(tmp_path / "file" / "x", f"Not a directory: {tmp_path / 'file'} is a file")
    refused(tmp_path / "file" / "a" / "b" / "x", f"Not a directory: {tmp_path / 'file'} is a file")
    refused(tmp_path / ("x" * 300), "File name too long")
    refused(tmp_path / "zero\0byte", "embedded null byte")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode) and (tmp_path / "file").read_text() == "old"


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "x", "new")
    assert (tmp_path / "a" / "b" / "x").read_text() == "new"


def test_a_block_that_fails_leaves_everything(tmp_path: Path) -> None:
    def work() -> None:
        with atomic_file(tmp_path / "x") as file:
            file.write(b"half")
            raise KeyError

    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyError):
        work()
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_only_temporaries_of_ended_processes_are_removed(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    ended = [tmp_path / f"a.tmp-{pid}", tmp_path / "sub" / f"b.ckpt.tmp-{pid}", tmp_path / f"c.tmp-{os.getpid()}"]
    kept = [tmp_path / f"d.tmp-{os.getppid()}", tmp_path / "e.tmp-1", tmp_path / "f.tmp-x", tmp_path / f"g.tmp-{pid}.x"]
    (tmp_path / "sub").mkdir()
    for path in ended + kept:
        path.write_text("half")
    (tmp_path / f"folder.tmp-{pid}").mkdir()
    assert sorted(remove_stale_temporaries(tmp_path)) == sorted(ended)
    assert all(path.exists() for path in kept) and (tmp_path / f"folder.tmp-{pid}").is_dir()
    assert remove_stale_temporaries(tmp_path / "absent") == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_process_that_nobody_waited_for_has_ended(tmp_path: Path) -> None:
    """A killed seed of a killed run keeps its number until the system's first process takes note of it."""
    child = subprocess.Popen(["sleep", "60"])
    left = tmp_path / f"weights.tmp-{child.pid}"
    left.touch()
    assert remove_stale_temporaries(tmp_path) == [] and left.exists()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still there
    assert remove_stale_temporaries(tmp_path) == [left] and not left.exists()
    child.wait()
