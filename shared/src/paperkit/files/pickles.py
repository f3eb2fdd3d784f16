"""Which classes a pickle names, found out without building any of them.

`torch.load(weights_only=True)` names the class that it refuses only for pickles of protocol 2, which `torch.save`
writes unless told otherwise; of others it reports an unknown operation. The user who must decide whether to trust a
file gets the name here.
"""

import contextlib
import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

LONGEST_PICKLE = 64 << 20  # bytes looked at; in torch's old format the tensors come after the pickle
PICKLES_IN_OLD_FORMAT = 5  # magic number, protocol, system, content, keys of the tensors


def named_classes(path: Path) -> list[str]:
    """Full names (`module.class`) in the order of the file, as far as the pickle can be followed; raises nothing."""
    names: list[str] = []
    with contextlib.suppress(Exception):  # a broken pickle raises anything; what was found before counts
        data = _pickle_bytes(path)
        for _ in range(PICKLES_IN_OLD_FORMAT):
            _collect(data, names)
    return names


def _pickle_bytes(path: Path) -> io.BytesIO:
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return io.BytesIO(file.read(LONGEST_PICKLE))
    with zipfile.ZipFile(path) as archive:
        record = next(record for record in archive.infolist() if record.filename.endswith("data.pkl"))
        with archive.open(record) as entry:
            return io.BytesIO(entry.read(LONGEST_PICKLE))


def _collect(data: io.BytesIO, names: list[str]) -> None:
    """Follows one pickle to its end. GLOBAL names a class itself, STACK_GLOBAL by the two strings before it."""
    strings: list[str] = []
    memo: dict[Any, str] = {}
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("GLOBAL", "INST"):
            names.append(str(argument).replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        elif "UNICODE" in operation.name:
            strings.append(str(argument))
        elif operation.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else argument] = strings[-1] if strings else ""
        elif operation.name in ("GET", "BINGET", "LONG_BINGET"):
            strings.append(memo.get(argument, ""))
