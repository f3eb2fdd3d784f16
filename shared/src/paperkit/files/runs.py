"""Run folders: where a run keeps its config, results, checkpoints and figures.

``<root>/<paper>/<name>/`` holds ``config.yaml``, ``env.json``, ``metrics.json``, ``checkpoints/``, ``figures/`` and
the two marks ``started`` and ``finished`` (a line with the UTC time each), by which the newest run is found.
"""

import contextlib
import dataclasses
import enum
import fcntl
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from paperkit.errors import UserError
from paperkit.files.atomic import remove_stale_temporaries, write_atomic
from paperkit.files.settings import read_settings

RUN_VARIABLE = "PAPERKIT_RUN"
"""By this variable the processes that a launcher starts find the run folder that the first one made."""


def process_rank() -> int:
    """0 in the first process of a run, above 0 in every other, as torchrun, SLURM and Lightning tell it."""
    ranks = (os.environ.get(name, "") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))
    return max(int(rank) if rank.isdigit() else 0 for rank in ranks)


class RunFolder:
    """One run's folder. Making the object touches nothing; `create` and `open` are the two ways to get one.

    Under several processes, rank 0 makes and locks the folder; processes that it launches join it by themselves.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, root: str | os.PathLike[str], paper: str, name: str | None = None) -> "RunFolder":
        """Makes ``root/paper/name``; without a name, the local time ``YYYYmmdd-HHMMSS``.

        Raises:
            UserError: if a folder of that name holds something already, or if it cannot be made.
        """
        if name is not None and (name in ("", ".", "..") or Path(name).name != name):
            raise UserError(f"--name {name!r} is no name of a folder; where runs lie is said with --root")
        inherited = os.environ.get(RUN_VARIABLE) or None
        if process_rank() > 0:
            if inherited is None and name is None:
                raise UserError("a run launched on several processes needs a name, the same for all")
            return cls(inherited if inherited is not None else Path(root) / paper / str(name))
        folder = Path(root) / paper
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        names = [name] if name is not None else [stamp, *(f"{stamp}-{i}" for i in range(2, 100))]
        for candidate in names:
            path = folder / candidate
            try:
                path.mkdir(parents=True, exist_ok=True)
                if not any(path.iterdir()):
                    write_atomic(path / "started", _now() + "\n")
                    return cls(path)
            except OSError as error:
                raise UserError(f"cannot make the run folder {path}: {error.strerror or error}") from error
        raise UserError(f"run folder {folder / names[0]} exists; continue it with --resume {names[0]} or name another")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """The run folder at ``path``, which must be one.

        Raises:
            UserError: if there is no folder, or if no run was started in it.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"no run folder at {path}" + (": that is a file" if path.exists() else ""))
        if not (path / "started").is_file():
            raise UserError(f"{path} is not a run folder: it has no file 'started'")
        return cls(path)

    @classmethod
    def newest(cls, root: str | os.PathLike[str], paper: str, finished: bool | None = None) -> "RunFolder | None":
        """The run of ``paper`` that started last: of the finished ones, of the unfinished ones, or (None) of all."""
        return next((run for run in cls.started(root, paper) if finished in (None, run.finished)), None)

    @classmethod
    def started(cls, root: str | os.PathLike[str], paper: str) -> "list[RunFolder]":
        """All runs of ``paper``, the one that started last first."""
        runs = [cls(mark.parent) for mark in (Path(root) / paper).glob("*/started")]
        return sorted(runs, key=lambda run: (_read_mark(run.path / "started"), run.path.name), reverse=True)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "finished").is_file()

    def mark_finished(self) -> None:
        """Notes that everything the run should write is written."""
        write_atomic(self.path / "finished", _now() + "\n")

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes the resolved config to ``config.yaml``; paths, enums, tuples and dataclasses become plain values."""
        write_atomic(self.path / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))

    def read_config(self) -> dict[str, Any]:
        """The config that `write_config` wrote.

        Raises:
            UserError: if the file is missing, unreadable, no YAML, or not a mapping.
        """
        return read_settings(self.path / "config.yaml", "run's config")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process, and removes what a killed one left half written.

        The kernel gives the lock back when the process ends, however it ends. Ranks above 0 belong to the holder.

        Raises:
            UserError: if another process works in the folder, or if the folder cannot be written.
        """
        if process_rank() > 0:
            yield
            return
        try:
            file = open(self.path / ".lock", "a+", encoding="ascii")  # noqa: SIM115 (held over the yield)
        except OSError as error:
            raise UserError(f"cannot lock the run folder {self.path}: {error.strerror or error}") from error
        with file, _not_for_children(file.fileno()):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read(20).strip()
                raise UserError(
                    f"run folder {self.path} is in use by process {holder or '(unknown)'}; wait for it or stop it first"
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            remove_stale_temporaries(self.path)
            yield


_held: set[int] = set()


@contextlib.contextmanager
def _not_for_children(descriptor: int) -> Iterator[None]:
    """Forked children (data workers) that outlive a killed process must not go on holding its lock."""
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)


def _let_go() -> None:
    for descriptor in _held:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, descriptor)  # the number stays taken: the parent's file object lives on in the child
        os.close(nothing)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def resolve_run(
    ckpt: str | os.PathLike[str] | None, root: str | os.PathLike[str], paper: str
) -> tuple[RunFolder | None, Path | None]:
    """What the option ``CKPT=`` means: (run folder, file).

    Nothing: the newest finished run and no file. A run folder: that run and no file. A file: the run folder it lies in,
    if it lies in one, and the file.

    Raises:
        UserError: if there is no finished run, if the path does not exist, or if the folder is no run folder.
    """
    if ckpt is None:
        run = RunFolder.newest(root, paper, finished=True)
        if run is None:
            raise UserError(f"no finished run in {Path(root) / paper}; train one first, or name a checkpoint")
        return run, None
    path = Path(ckpt)
    if path.is_dir():
        return RunFolder.open(path), None
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: neither a file nor a run folder")
    for folder in list(path.absolute().parents)[:3]:  # RUN/file, RUN/checkpoints/file, RUN/seed0/checkpoints/file
        if (folder / "started").is_file():
            return RunFolder(folder), path
    return None, path


def weights_of(run: RunFolder | None, named: str | None) -> Path:
    """The weights that an evaluation takes: what is named, or the last ones of a run, its folder `model/`.

    Args:
        run: the run that `named` is, or lies in; None outside of runs.

    Raises:
        UserError: an unfinished run, or nothing named.
    """
    if named is not None and (run is None or Path(named).absolute() != run.path.absolute()):
        return Path(named)
    if run is None:
        raise UserError("no weights: name a run, a folder of save_pretrained or a released file with --ckpt")
    if not (run.path / "model").is_dir():
        raise UserError(f"{run.path} has no model/ folder: the run is not finished")
    return run.path / "model"


def plain(value: Any) -> Any:
    """``value`` in the types that YAML, JSON and a safe checkpoint reader all know.

    Paths become strings, enums their names, dataclasses and mappings dicts, other collections lists.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} has no plain form for a config: {value!r}")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _read_mark(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
