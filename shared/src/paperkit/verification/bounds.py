"""What a reference file may ask for: its config is a stranger's, and a depth of a million would run for an hour.

Three bounds hold for every kind: whole numbers of the config (`check_sizes`), its values and levels
(`paperkit.files.bounded`), and the parameters of the modules that recompute it (`at_most`). A kind whose work grows
faster than its numbers (pairs, powers, sweeps) sets smaller ones by `Kind.limits`.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from paperkit.errors import UserError

LARGEST_NUMBER = 100_000
"""The largest whole number among the options of a reference file, where its kind sets no other."""
SPARE = 8
"""The work on a file may build this many times its tensors and their numbers,"""
MOST_PARAMETERS = 5_000
"""and this many parameter tensors more; the largest given file, counts of full networks, causes 3,036,"""
MOST_NUMBERS = 20_000_000
"""and this many numbers more, those on the meta device aside; the largest given file causes 307,050."""


def check_sizes(
    config: Mapping[str, Any],
    limits: Mapping[str, int] | None = None,
    results: Sequence[str] = (),
    where: str = "config",
) -> None:
    """Refuses options that are larger than a kind can mean.

    Args:
        config: options, nested as JSON is.
        limits: the largest absolute value by dotted path, with `*` for any part of it (`"depth"`, `"cases.*.rank"`,
            `"*.steps"`); the first that fits counts. Without one it is `LARGEST_NUMBER`, and a seed is free.
        results: paths that are computed and compared, so that nothing is built from them.
        where: how messages call the config.

    Raises:
        UserError: with the path, the value and the largest allowed one.
    """
    limits = limits or {}
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        path, value = waiting.pop()
        if path and any(_fits(path, pattern) for pattern in results):
            continue
        if isinstance(value, Mapping | list):
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{path}.{key}".removeprefix("."), inner) for key, inner in entries]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            allowed = next((most for pattern, most in limits.items() if _fits(path, pattern)), LARGEST_NUMBER)
            if "seed" in path.split(".")[-1] and allowed == LARGEST_NUMBER:
                continue
            whole = isinstance(value, int) or value.is_integer()
            if whole and abs(value) > allowed:
                raise UserError(f"{where}.{path} is {str(value)[:30]}; the most that this kind takes is {allowed}")


def _fits(path: str, pattern: str) -> bool:
    """Whether each part of a dotted path is what the pattern says."""
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


@contextlib.contextmanager
def at_most(
    tensors: Iterable[Tensor], parameters: int = MOST_PARAMETERS, numbers: int = MOST_NUMBERS
) -> Iterator[None]:
    """Ends work of this thread that builds far more parameters than the file has tensors.

    A parameter is counted before its numbers are drawn, so the memory of one that is too large is never touched.

    Args:
        tensors: of the file.
        parameters, numbers: what may be built beyond `SPARE` times those.

    Raises:
        UserError: what is built is far larger than such a file needs.
    """
    sizes = [tensor.numel() for tensor in tensors]
    parameters, numbers = parameters + SPARE * len(sizes), numbers + SPARE * sum(sizes)
    made, thread = [0, 0], threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or threading.get_ident() != thread:
            return
        made[0] += 1
        made[1] += 0 if parameter.is_meta else parameter.numel()
        if made[0] > parameters or made[1] > numbers:
            raise UserError(f"its options ask for a far larger network than such a file needs ({made[0]} tensors)")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
