"""How a file gets to its place whole: a temporary file beside it, then a rename."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from paperkit.errors import UserError

STALE = re.compile(r"\.tmp-(\d+)$")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens `<path>.tmp-<pid>` for writing and reading; when the block ends well, it becomes `path`.

    The temporary file lies in the folder of `path`, so the rename is one step of the file system: whoever opens
    `path` sees the whole old file or the whole new one, whatever happens in between (exception, full disk, kill -9,
    power cut). If the block or the write fails, the temporary file is removed and `path` is as it was.

    A link stays, and what it points to is replaced. Permissions and, where that is allowed, the owner of the replaced
    file are kept. Missing folders are made.

    Raises:
        UserError: `cannot write <path>: <reason>` for every failure of the file system.
    """
    try:
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
        old = _status_of_old(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            wrong = next((parent for parent in target.parents if parent.exists()), target.parent)
            raise UserError(f"cannot write {path}: Not a directory: {wrong} is a file") from None
        try:
            with open(temporary, "w+b") as file:
                if old is not None:
                    with contextlib.suppress(PermissionError):
                        os.fchown(file.fileno(), old.st_uid, old.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
                size = file.seek(0, os.SEEK_END)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
        found = target.stat().st_size  # a network file system may report its failure only now
        if found != size:
            raise UserError(f"cannot write {path}: {size} bytes were written and {found} are there")
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _status_of_old(target: Path) -> os.stat_result | None:
    """Of the file that is to be replaced; a device or a pipe is none, and the rename would remove it."""
    try:
        status = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return status


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to `path`, whole or not at all; see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut, where folders can be opened and synced."""
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)


def remove_stale_temporaries(folder: str | os.PathLike[str]) -> list[Path]:
    """Removes what a killed process left half written below `folder` and returns the files' paths.

    A temporary file whose process still runs on this machine is left alone, but for this process's own.
    """
    removed = []
    for path in sorted(Path(folder).rglob("*.tmp-*")):
        stale = STALE.search(path.name)
        if stale and path.is_file() and (int(stale[1]) == os.getpid() or not _is_running(int(stale[1]))):
            with contextlib.suppress(OSError):  # a folder that may only be read
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:  # one that was killed and that nobody has waited for yet keeps its number, and writes no more
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # it ended just now, or a system without /proc
        return True
    return state not in ("Z", "X")
