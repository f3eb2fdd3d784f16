"""Files of a Lightning run, written whole or not at all, and read again by the run that goes on.

Lightning's own writer keeps its temporary file in the system's temporary folder: where that is another file system, a
full disk destroys the checkpoint that was to be replaced. In a folder that cannot be written it returns without a
word and without a file. `AtomicCheckpointIO` does neither. Lightning's table of logged values is deleted by a resumed
run; `ValueTable` goes on with it.
"""

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import read_checkpoint, save_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Give it to the Trainer: `Trainer(plugins=[AtomicCheckpointIO()])`. For folders of the local file system.

    Files are sealed with a checksum and read with `weights_only=True`, unless `fit(weights_only=False)` says
    otherwise.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Replaces the file at `path`, or leaves it as it was.

        Raises:
            UserError: `cannot write <path>: <reason>; last good checkpoint: <path> (step N)`.
            TypeError: for `storage_options`, which belong to remote folders.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes to local folders, where storage_options mean nothing")
        try:
            save_checkpoint(path, checkpoint)
        except UserError as error:
            raise UserError(f"{error}; last good checkpoint: {describe_newest_good([Path(path).parent])}") from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of `path` on the CPU, from where Lightning copies it to its place.

        Raises:
            UserError: as `paperkit.files.weights.read_checkpoint`.
        """
        content = read_checkpoint(path, trust_pickle=weights_only is False, advice=None)
        if not isinstance(content, dict) or "state_dict" not in content:
            raise UserError(f"{path} is no checkpoint of a run: it holds no state_dict")
        return content


class ValueTable(Logger):
    """The logged values as a CSV file: a row for each time that something was logged, with the number of the step.

    A resumed run reads the rows that are there, and what it logs again takes the place of the same row: the file ends
    as that of a run that was never cut off.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(path)
        self._rows: dict[tuple[int, tuple[str, ...]], dict[str, Any]] = {}
        self._read = False

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return self.path.stem

    @property
    def version(self) -> str:
        """Lightning asks for one."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """There is no object behind it."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They stand in the run's config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One row."""
        if not self._read:
            self._read = True
            if self.path.exists():
                with self.path.open(newline="", encoding="utf-8") as file:
                    for row in csv.DictReader(file):
                        self._put({key: value for key, value in row.items() if value != ""})
        values = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        self._put({**values, "step": step or 0})

    def _put(self, row: dict[str, Any]) -> None:
        self._rows[int(row["step"]), tuple(sorted(row))] = row

    @rank_zero_only
    def save(self) -> None:
        """Writes the file."""
        if not self._rows:
            return
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, sorted({key for row in self._rows.values() for key in row}))
        table.writeheader()
        table.writerows(row for _, row in sorted(self._rows.items(), key=lambda item: item[0][0]))
        write_atomic(self.path, text.getvalue())

    def finalize(self, status: str) -> None:
        """Writes the file, also after an error."""
        self.save()


def newest_good(folders: Iterable[str | os.PathLike[str]]) -> tuple[Path, int | None] | None:
    """The newest checkpoint (`*.ckpt`, `*.pth`) directly in `folders` that reads and holds no NaN, and its step.

    The step is None where the file does not tell it. Files that cannot be read are passed over.
    """
    files: list[tuple[float, Path]] = []
    for folder in folders:
        with contextlib.suppress(OSError):
            files += [(p.stat().st_mtime, p) for p in Path(folder).iterdir() if p.suffix in (".ckpt", ".pth")]
    for _, path in sorted(files, reverse=True):
        with contextlib.suppress(UserError):
            content = read_checkpoint(path)
            if isinstance(content, Mapping) and not _has_nan(content.get("state_dict")):
                step = content.get("global_step")
                return path, step if isinstance(step, int) else None
    return None


def describe_newest_good(folders: Iterable[str | os.PathLike[str]]) -> str:
    """`<path> (step N)` of `newest_good`, or `none yet`."""
    good = newest_good(folders)
    if good is None:
        return "none yet"
    return f"{good[0]}" + ("" if good[1] is None else f" (step {good[1]})")


def _has_nan(state: Any) -> bool:
    tensors = state.values() if isinstance(state, Mapping) else ()
    floats = (value for value in tensors if isinstance(value, Tensor) and value.is_floating_point())
    return any(bool(value.isnan().any()) for value in floats)
