"""How a file gets to its place whole: a temporary file beside it, then a rename.

Callers import these names from `paperkit.files.runs`.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from paperkit.errors import UserError

STALE = re.compile(r"\.tmp-(\d+)$")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens ``<path>.tmp-<pid>`` for writing and reading; when the block ends well, it becomes ``path``.

    The temporary file lies in the folder of ``path``, so the rename is one step of the file system: whoever opens
    ``path`` sees the whole old file or the whole new one, whatever happens in between (exception, full disk, kill -9,
    power cut). If the block or the write fails, the temporary file is removed and ``path`` is as it was.

    Raises:
        UserError: ``cannot write <path>: <reason>`` for every failure of the file system.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                size = file.seek(0, os.SEEK_END)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        with open(path, "rb") as written:  # a network file system may report its failure only now
            found = written.seek(0, os.SEEK_END)
        if found != size:
            raise UserError(f"cannot write {path}: {size} bytes were written and {found} are there")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes ``data`` (text as UTF-8) to ``path``, whole or not at all; see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_temporaries(folder: str | os.PathLike[str]) -> list[Path]:
    """Removes what a killed process left half written below ``folder`` and returns the files' paths.

    A temporary file whose process still runs on this machine is left alone, but for this process's own.
    """
    removed = []
    for path in sorted(Path(folder).rglob("*.tmp-*")):
        stale = STALE.search(path.name)
        if stale and path.is_file() and (int(stale[1]) == os.getpid() or not _is_running(int(stale[1]))):
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
    return True
