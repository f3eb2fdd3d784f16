"""Which checkpoint of a run can still be relied on, for the line that ends a run that failed."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.weights import read_checkpoint


def newest_good(folders: Iterable[str | os.PathLike[str]]) -> tuple[Path, int | None] | None:
    """The newest checkpoint (``*.ckpt``, ``*.pth``) directly in ``folders`` that reads and holds no NaN, and its step.

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
    """``<path> (step N)`` of `newest_good`, or ``none yet``."""
    good = newest_good(folders)
    if good is None:
        return "none yet"
    return f"{good[0]}" + ("" if good[1] is None else f" (step {good[1]})")


def _has_nan(state: Any) -> bool:
    tensors = state.values() if isinstance(state, Mapping) else ()
    floats = (value for value in tensors if isinstance(value, Tensor) and value.is_floating_point())
    return any(bool(value.isnan().any()) for value in floats)
