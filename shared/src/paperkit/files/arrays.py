"""Numpy's `.npz` files, read within bounds: no pickles, and no more memory than the file's size allows.

A zip member of 1 kB can expand to 1 MB. What each member will be is known from two headers, the archive's and the
array's; both are compared with each other and with the size of the file before any array is made.
"""

import math
import zipfile
from typing import IO, Any

import numpy
from numpy.lib import format as npy

from paperkit.errors import UserError, one_line
from paperkit.files.bounded import MOST_MEMBERS, PathLike, regular_file

LARGEST = 64 << 30
"""Bytes of the largest set of arrays that is read."""
MOST_SWELLING = 16
"""Arrays may hold this many times the bytes of their compressed file; floats of a network shrink by a tenth."""
ALWAYS = 64 << 20
"""Bytes that arrays may hold however small the file is: a small file of zeros is no attack."""


def read_npz(path: PathLike, finite: bool = True) -> dict[str, numpy.ndarray]:
    """The arrays of a `.npz` file by name.

    Args:
        finite: refuse arrays with a NaN or an infinity, as weights must not have.

    Raises:
        UserError: one line with the file's name, if it is missing, damaged, no npz file, holds pickled objects, odd or
            repeated names, or would expand to more than `MOST_SWELLING` times its size.
    """
    path = regular_file(path, "npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.filename.startswith("__MACOSX/")]
            _check(members, path.stat().st_size)
            arrays = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as file:
                    arrays[name] = _array(file, member.file_size, name)
                if finite and arrays[name].dtype.kind in "fc" and not numpy.isfinite(arrays[name]).all():
                    raise ValueError(f"{name} holds NaN or infinite numbers")
            return arrays
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged or no npz file: {one_line(str(error))[:200]}") from error
    except Exception as error:  # zlib, numpy, zipfile and the file system each have their own
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(f"{path} cannot be read as npz: {reason[:200]}") from error


def _check(members: list[zipfile.ZipInfo], size: int) -> None:
    """Compares what the archive claims with the size of its file."""
    if not members or len(members) > MOST_MEMBERS:
        raise ValueError(f"it has {len(members)} members")
    claimed = sum(member.file_size for member in members)
    most = min(LARGEST, max(ALWAYS, MOST_SWELLING * size))
    if claimed > most:
        raise ValueError(f"it would expand from {size} bytes to {claimed}, and {most} is the most that is read")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        if not name.endswith(".npy") or name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ValueError(f"its member {name[:100]!r} is no array")
        if name in seen:
            raise ValueError(f"it holds {name[:100]} twice")
        seen.add(name)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name[:100]} is compressed in a way that numpy does not write")


def _array(file: IO[bytes], claimed: int, name: str) -> numpy.ndarray:
    """One array whose header fits the bytes that its member claims."""
    version = npy.read_magic(file)
    read: Any = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"{name} is of version {version} of the format; 1.0 and 2.0 are read")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, not numbers")
    if dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise ValueError(f"{name} is of type {dtype} and shape {shape}")
    count = math.prod(shape)
    told = file.tell() + count * dtype.itemsize
    if told != claimed:
        raise ValueError(f"{name} needs {told} bytes for shape {shape} of {dtype} and has {claimed}")
    data = bytearray(file.read())
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"{name} was cut off")
    array = numpy.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
