"""Files from elsewhere, opened within bounds: what a file claims of itself is checked before memory is asked for.

Time and memory of a reader grow with the bytes on the disk, never with a number that stands in them. A file that is
something else than its name says is told by its first bytes.
"""

import json
import os
import re
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

from paperkit.errors import UserError, one_line
from paperkit.files.seal import check_seal

PathLike = str | os.PathLike[str]

LARGEST_JSON = 4 << 20
"""Bytes of the largest JSON file that is read."""
MOST_VALUES = 200_000
"""Values of the largest JSON that is read, those in lists and objects included."""
DEEPEST = 64
"""Levels of the most deeply nested JSON that is read."""
LONGEST_HEADER = 32 << 20
"""Bytes of the longest header of a safetensors file; 100,000 tensors need a third of it."""
MOST_MEMBERS = 200_000
"""Members of the largest zip file."""

ZIP = b"PK\x03\x04"
FOREIGN = (
    (b"\x1f\x8b", "is compressed by gzip: unpack it first (gunzip)"),
    (b"BZh", "is compressed by bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ\0", "is compressed by xz: unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "is a rar archive: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file (of Keras or TensorFlow), not one of torch"),
    (b"GGUF", "is a GGUF file, not one of torch"),
    (b"\x93NUMPY", "is a numpy array, not a set of weights"),
)


def regular_file(path: PathLike, what: str = "checkpoint") -> Path:
    """`path` after the checks that need no knowledge of the format: it is a file with content, undamaged if sealed.

    Args:
        what: how a message calls the file.

    Raises:
        UserError: if it is missing, a folder or a device, empty, unreadable, or sealed and damaged; as `told_format`.
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a folder, not a {what} file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file")
        if status.st_size == 0:
            raise UserError(f"{path} is empty (0 bytes)")
        with open(path, "rb") as file:
            told_format(path, what)
            check_seal(file, path)
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return path


def told_format(path: Path, what: str = "checkpoint") -> str:
    """`safetensors`, `torch` or the empty string, by the content alone.

    Raises:
        UserError: for a pointer that git's large file storage left in the file's place, a compressed file, a web page
            and others that can be nothing that is read here.
    """
    with open(path, "rb") as file:
        start = file.read(512)
        size = file.seek(0, os.SEEK_END)
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8:
        return "safetensors"  # first, since its first bytes are a length and may be any
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the file: git lfs pull")
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        raise UserError(f"{path} is damaged or no {what}: it is a web page (HTML or XML), so the download went wrong")
    for mark, reason in FOREIGN:
        if start.startswith(mark):
            raise UserError(f"{path} {reason}")
    if start[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive: unpack it first")
    if start.startswith(ZIP) or re.match(rb"\x80[\x02-\x05]", start):
        return "torch"
    return ""


def check_torch_archive(path: Path) -> None:
    """Refuses a zip file that would unpack to more bytes than it has, or that holds no checkpoint of torch.

    Raises:
        ValueError: with the reason.
    """
    with open(path, "rb") as file:
        if file.read(4) != ZIP:
            return  # torch's old format
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    claimed = sum(member.file_size for member in members)
    if claimed > path.stat().st_size:
        raise ValueError(f"its directory claims {claimed} bytes and the file has {path.stat().st_size}")
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError("it is a TorchScript archive, which holds code: save the state dict of the module instead")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed, and torch.save compresses nothing: unpack it first")
    if not any(re.fullmatch(r"([^/]+/)?data\.pkl", name) for name in names):
        shown = ", ".join(name[:40] for name in names[:3]) or "nothing"
        raise ValueError(f"it is a zip file of {shown}: unpack it first")


def check_safetensors(path: Path) -> None:
    """Refuses a header that is longer than the file or than any header is; the rest the library checks by itself.

    Raises:
        UserError: `<path> is damaged or no safetensors file: <reason>`.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        size = file.seek(0, os.SEEK_END)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= size - 8:
        reason = f"its header claims {length} bytes and the file has {size}"
    elif length > LONGEST_HEADER:
        reason = f"its header of {length} bytes is longer than any is ({LONGEST_HEADER} at most)"
    else:
        return
    raise UserError(f"{path} is damaged or no safetensors file: {reason}")


def read_json(path: PathLike, what: str = "file", largest: int = LARGEST_JSON) -> Any:
    """The content of a JSON file.

    Args:
        what: how a message calls the file.
        largest: most bytes that are read.

    Raises:
        UserError: as `regular_file`, and if it is too large, no JSON, or has too many values or levels.
    """
    path = regular_file(path, what)
    try:
        with open(path, "rb") as file:
            raw = file.read(largest + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > largest:
        raise UserError(f"{path} is larger than {largest} bytes, the most that is read of a {what} in JSON")
    try:
        return parse_json(raw)
    except ValueError as error:
        raise UserError(f"{path} is damaged or no JSON: {one_line(str(error))[:200]}") from error


def parse_json(text: str | bytes) -> Any:
    """What `text` says, unless it is nested more than `DEEPEST` levels or has more than `MOST_VALUES` values.

    Raises:
        ValueError: with the reason.
    """
    try:
        content = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    level, values, depth = [content], 0, 0
    while level:
        values += len(level)
        if values > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values")
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict | list):
                inner += value.values() if isinstance(value, dict) else value
        level, depth = inner, depth + 1
    return content
