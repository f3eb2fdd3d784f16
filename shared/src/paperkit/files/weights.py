"""Checkpoints and weight files: nothing half-written, nothing unsafe, nothing silently left out.

Writing goes through a temporary file and a rename, with a checksum over the whole file (`sealed_files`). Reading runs
no code from the file, checks the sums and sizes first, and ends in one line that names the file, whatever is wrong
with it.
"""

import argparse
import io
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from paperkit.errors import UserError, one_line
from paperkit.files.atomic import atomic_file
from paperkit.files.keys import KeyReport, first_few, load_report, load_strict
from paperkit.files.pickles import named_classes
from paperkit.files.seal import SEAL_KEYS, Piece, check_seal, seal_safetensors, seal_zip

__all__ = [
    "KeyReport",
    "load_report",
    "load_strict",
    "read_checkpoint",
    "read_metadata",
    "read_weights",
    "save_checkpoint",
    "save_weights",
]

PathLike = str | os.PathLike[str]
Allowed = type | tuple[type, str]
SAFE: tuple[Allowed, ...] = (argparse.Namespace,)  # holds values only; many released files keep their options in one
HARMLESS = {"_codecs.encode", *(f"builtins.{name}" for name in ("set", "bytearray", "complex"))}


def read_checkpoint(path: PathLike, trust_pickle: bool = False, allow: Iterable[Allowed] = ()) -> Any:
    """The full content of a file of ``torch.save`` or safetensors (told by its suffix), tensors on the CPU.

    Args:
        path: the file.
        trust_pickle: run whatever the pickle asks for. Only for files whose origin the user vouches for.
        allow: further classes that may be built, which must do no harm when filled with anything. A pair of a class and
            the full name in the file puts a stand-in where the original is not installed.

    Raises:
        UserError: if the file is missing, unreadable, empty, damaged, no checkpoint, or wants a class that is not
            allowed.
    """
    path = _regular_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    allowed: list[Allowed] = [*SAFE, *allow]
    try:
        _check_directory(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([*allowed]):
            warnings.simplefilter("ignore")  # on old protocols and types; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # torch raises nearly every class of exception on a broken file
        raise UserError(_explain(path, error, None if trust_pickle else allowed)) from error


def _check_directory(path: Path) -> None:
    """Refuses a zip file that would unpack to more bytes than it has; torch.save compresses nothing."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # torch's old format
    with zipfile.ZipFile(path) as archive:
        claimed = sum(record.file_size for record in archive.infolist())
    if claimed > path.stat().st_size:
        raise ValueError(f"its directory claims {claimed} bytes and the file has {path.stat().st_size}")


def _regular_file(path: PathLike) -> Path:
    """``path`` after the checks that need no knowledge of the format, the checksum of our own files among them."""
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a folder, not a checkpoint file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file")
        if status.st_size == 0:
            raise UserError(f"{path} is empty (0 bytes)")
        with open(path, "rb") as file:
            check_seal(file, path)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return path


def _explain(path: Path, error: Exception, allowed: list[Allowed] | None) -> str:
    """The one line for a file of ``torch.save`` that could not be read; None allows every class."""
    reason = one_line(str(error))
    if " " not in reason:  # a KeyError's text is the key alone
        reason = f"{type(error).__name__} {reason}".strip()
    if allowed is not None:
        told = re.findall(r"GLOBAL ([\w.]*\w)", reason)
        harmless = HARMLESS | {a[1] if isinstance(a, tuple) else f"{a.__module__}.{a.__qualname__}" for a in allowed}
        names = [name.replace("__builtin__.", "builtins.") for name in named_classes(path)]
        refused = told + [n for n in names if n not in harmless and not n.startswith(("torch.", "collections."))]
        if refused:
            return (
                f"{path} was not read: it wants {refused[0][:100]}, and a pickle that builds it can run code; "
                "if you trust where the file comes from, add --trust-pickle"
            )
    return f"{path} is damaged or no checkpoint: {reason.split('. ')[0][:200]}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # SafetensorError, and KeyError or others on types that torch lacks
        raise UserError(f"{path} is damaged or no safetensors file: {one_line(str(error))[:200]}") from error


def read_metadata(path: PathLike) -> dict[str, str]:
    """The metadata of a safetensors file, without the seal.

    Raises:
        UserError: as `read_checkpoint`.
    """
    path = _regular_file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # as above
        raise UserError(f"{path} is damaged or no safetensors file: {one_line(str(error))[:200]}") from error
    return {key: value for key, value in metadata.items() if key not in SEAL_KEYS}


def read_weights(path: PathLike, trust_pickle: bool = False, allow: Iterable[Allowed] = ()) -> dict[str, Tensor]:
    """The state dict in a file: the file's content, or what stands in it under ``state_dict`` or ``model``.

    The prefixes that wrappers leave in keys are taken off: ``_orig_mod.`` of torch.compile wherever it stands,
    ``module.`` of DataParallel where every key begins with it.

    Raises:
        UserError: as `read_checkpoint`, and if there is no state dict in the file.
    """
    content = read_checkpoint(path, trust_pickle, allow)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no weights but a {type(content).__name__}")
    strangers = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers or not content:
        raise UserError(f"{path} holds no state dict; beside tensors it has {first_few(strangers)}")
    return _without_prefixes(dict(content), path)


def _without_prefixes(state: dict[str, Tensor], path: PathLike) -> dict[str, Tensor]:
    named = {key: re.sub(r"(^|\.)_orig_mod\.", r"\1", key) for key in state}
    while all(new.startswith("module.") for new in named.values()):
        named = {key: new.removeprefix("module.") for key, new in named.items()}
    if len(set(named.values())) < len(state):
        raise UserError(f"{path} holds one weight twice, with and without a wrapper's prefix")
    return {new: state[key] for key, new in named.items()}


def save_weights(path: PathLike, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes ``state`` as a sealed safetensors file, whole or not at all. Tensors that share memory are written apart.

    The bytes depend on nothing but the arguments.

    Raises:
        UserError: ``cannot write <path>: <reason>``.
    """
    seen: set[int] = set()
    tensors = {}
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    _write(path, seal_safetensors(safetensors.torch.save(tensors, dict(metadata or {}))))


def save_checkpoint(path: PathLike, content: Any) -> None:
    """Writes ``content`` by ``torch.save`` as a sealed file, whole or not at all.

    Raises:
        UserError: ``cannot write <path>: <reason>``; also if the content holds an object that `read_checkpoint` would
            refuse, which otherwise shows only when the run is resumed.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals(list(SAFE)):
        refused = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    if refused:
        raise UserError(
            f"cannot write {path}: it would hold {first_few(sorted(refused))}, which is not safe to read back; "
            "keep plain values (text, numbers, lists, dicts, tensors) in it"
        )
    _write(path, seal_zip(buffer.getbuffer()))


def _write(path: PathLike, pieces: Iterable[Piece]) -> None:
    with atomic_file(path) as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        check_seal(file, path)  # before the rename: a bad write never takes the place of a good file
