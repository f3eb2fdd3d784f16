"""Weight files that know when they were damaged: a SHA-256 over the whole file, kept inside the file.

A zip's own CRC and safetensors' own bounds let most flipped bits through (a weight, a key, a shape that still
parses). Here the digest stands in a field of fixed width that counts as 64 zeros while hashing, so every bit of the
file is covered, the field included. Two marks surround the field, and one of them is enough to know a sealed file: a
single flipped bit cannot turn it into a file that seems to come from elsewhere.

The containers stay what they were. In safetensors the field is the first entry of `__metadata__`; in torch's zip
files it is the archive's comment. `torch.load` and `safetensors` read both as ever.
"""

import hashlib
import json
import os
import struct
from typing import IO

from paperkit.errors import UserError

ZEROS = b"0" * 64
HEADER_MARKS = b'{"__metadata__":{"paperkit.sha256":"', b'","paperkit.sealed":"sha256"'
COMMENT_MARKS = b"paperkit sha256 ", b" sealed\n"
SEAL_KEYS = "paperkit.sha256", "paperkit.sealed"
END_OF_ZIP = b"PK\x05\x06"  # followed by 16 bytes and the length of the comment

Piece = bytes | memoryview  # a view where a copy would double the memory of a save


def seal_safetensors(serialized: bytes) -> list[Piece]:
    """The pieces of the sealed file, in order, from what `safetensors.torch.save` returned."""
    length = struct.unpack("<Q", serialized[:8])[0]
    header = json.loads(serialized[8 : 8 + length])
    given = header.pop("__metadata__", {})
    metadata = {SEAL_KEYS[0]: ZEROS.decode(), SEAL_KEYS[1]: "sha256", **dict(sorted(given.items()))}
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned
    data = memoryview(serialized)[8 + length :]
    return [_fill(struct.pack("<Q", len(text)) + text, 8 + len(HEADER_MARKS[0]), after=data), data]


def seal_zip(archive: Piece) -> list[Piece]:
    """The pieces of the sealed file, in order, from what `torch.save` wrote."""
    if archive[-22:-18] != END_OF_ZIP or archive[-2:] != b"\0\0":
        raise ValueError("not an archive of torch.save: it does not end in the directory of a zip file without comment")
    comment = COMMENT_MARKS[0] + ZEROS + COMMENT_MARKS[1]
    tail = bytes(archive[-22:-2]) + struct.pack("<H", len(comment)) + comment
    front = memoryview(archive)[:-22]
    return [front, _fill(tail, 22 + len(COMMENT_MARKS[0]), before=front)]


def _fill(piece: bytes, position: int, before: Piece = b"", after: Piece = b"") -> bytes:
    """`piece` with the digest of the whole file at `position`, where the zeros are now."""
    digest = hashlib.sha256(before)
    digest.update(piece)
    digest.update(after)
    return piece[:position] + digest.hexdigest().encode() + piece[position + len(ZEROS) :]


def check_seal(file: IO[bytes], name: str | os.PathLike[str]) -> bool:
    """Whether `file` is sealed; a sealed one is read and hashed in full.

    Raises:
        UserError: if it is sealed and any bit differs from what was written, or if it is a zip file cut short.
    """
    field = _digest_position(file, name)
    if field is None:
        return False
    size = file.seek(0, os.SEEK_END)
    digest, told = hashlib.sha256(), b""
    if 0 <= field <= size - len(ZEROS):
        file.seek(0)
        _hash(file, field, digest)
        told = file.read(len(ZEROS))
        digest.update(ZEROS)
        _hash(file, size - field - len(ZEROS), digest)
    if told != digest.hexdigest().encode():
        raise UserError(f"{name} is damaged: its checksum does not match its {size} bytes; take another copy of it")
    return True


def _digest_position(file: IO[bytes], name: str | os.PathLike[str]) -> int | None:
    """Where the digest should begin in a sealed file (-1: nowhere); None in a file that is not sealed."""
    first, second = HEADER_MARKS
    file.seek(8)
    start = file.read(len(first) + len(ZEROS) + len(second))
    if start.startswith(first) or start[len(first) + len(ZEROS) :] == second:
        return 8 + len(first)
    first, second = COMMENT_MARKS
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 65557))  # the longest end of a zip file: 22 bytes and a comment of 65535
    tail = file.read()
    if tail.endswith(second) or first in tail[-1024:]:
        return size - len(second) - len(ZEROS)
    end = tail.rfind(END_OF_ZIP)
    if end >= 0 and len(tail) >= end + 22 and struct.unpack_from("<H", tail, end + 20)[0] != len(tail) - end - 22:
        raise UserError(f"{name} is damaged: its end was cut off or something was added to it")
    return None


def _hash(file: IO[bytes], count: int, digest: "hashlib._Hash") -> None:
    """Feeds the next `count` bytes to `digest`."""
    while count > 0:
        block = file.read(min(count, 1 << 20))
        if not block:
            return  # the file shrank meanwhile: the digest will not match
        digest.update(block)
        count -= len(block)
