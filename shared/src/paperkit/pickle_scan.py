"""What a pickled checkpoint asks for, found out without doing any of it.

``torch.load(weights_only=True)`` guards against code. It does not compare the size of a tensor in the pickle with the
bytes that lie in the archive: a single flipped bit there makes a tensor that reads beyond its memory. It also names a
forbidden class only for old pickle protocols. Both are answered here first, by running the pickle with every class
replaced by a puppet that does nothing.
"""

import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch


class _Puppet:
    """Stands for an object of any class; takes any arguments and any state, and does nothing."""

    wanted = ""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


class _Scan(pickle._Unpickler):
    """The unpickler in Python: unlike the one in C, it allocates nothing because an index in the file says so."""

    def __init__(self, file: IO[bytes], names: list[str]) -> None:
        super().__init__(file, encoding="latin1")
        self.names = names
        self.storages: list[Any] = []

    def find_class(self, module: str, name: str) -> type[_Puppet]:
        wanted = f"{module}.{name}"
        self.names.append(wanted)
        return type("_Puppet", (_Puppet,), {"wanted": wanted})

    def persistent_load(self, pid: Any) -> None:
        self.storages.append(pid)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension code {code}")


def scan_zip(path: Path, names: list[str]) -> None:
    """Checks a zip file of ``torch.save``; adds the classes that its pickle names to ``names``, as far as it reads.

    Raises:
        ValueError: if what it claims does not fit what it holds.
        Exception: anything that zipfile and pickle raise on a broken file.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        claimed, size = sum(record.file_size for record in records), path.stat().st_size
        if claimed > size:
            raise ValueError(f"its directory claims {claimed} bytes and the file has {size}")
        pickles = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"a zip file with {len(pickles)} entries data.pkl, where torch.save writes one")
        sizes = {record.filename: record.file_size for record in records}
        with archive.open(pickles[0]) as file:
            scan = _Scan(file, names)
            scan.load()
    folder = pickles[0].filename.removesuffix("data.pkl") + "data/"
    for pid in scan.storages:
        _check_storage(pid, sizes, folder)


def _check_storage(pid: Any, sizes: dict[str, int], folder: str) -> None:
    """Checks one reference ("storage", class, key, device, number of elements) against the record it points to."""
    if not (isinstance(pid, tuple) and len(pid) == 5):
        raise ValueError("a tensor without a storage of the usual form")
    _, storage, key, _, count = pid
    name = getattr(storage, "wanted", "").rpartition(".")[2]
    dtype = torch.uint8 if name == "UntypedStorage" else getattr(getattr(torch, name, None), "dtype", None)
    held = sizes.get(f"{folder}{key}")
    if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or held is None:
        raise ValueError(f"a tensor whose storage {str(key)[:40]!r} is not in the file")
    if not 0 <= count * dtype.itemsize <= held:
        raise ValueError(f"a tensor of {count} elements of {dtype.itemsize} bytes where the file holds {held} bytes")


def scan_pickles(path: Path, names: list[str]) -> None:
    """Adds the classes that a file in torch's old format names to ``names``, as far as it reads; checks nothing."""
    with open(path, "rb") as file:
        for _ in range(5):  # magic number, protocol, system, the content, keys of the storages
            _Scan(file, names).load()
