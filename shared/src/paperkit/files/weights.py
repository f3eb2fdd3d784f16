"""Checkpoints and weight files: nothing half-written, nothing unsafe, nothing silently left out.

Writing goes through a temporary file and a rename, with a checksum over the whole file (`paperkit.files.seal`).
Reading runs no code from the file, checks the sums and sizes first, and ends in one line that names the file, whatever
is wrong with it.
"""

import argparse
import io
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from paperkit.errors import UserError, one_line
from paperkit.files.atomic import atomic_file
from paperkit.files.bounded import PathLike, check_safetensors, check_torch_archive, regular_file, told_format
from paperkit.files.keys import KeyReport, first_few, load_report, load_strict
from paperkit.files.parts import find_state, without_prefixes
from paperkit.files.pickles import named_classes
from paperkit.files.seal import SEAL_KEYS, Piece, check_seal, seal_safetensors, seal_zip

__all__ = [
    "KeyReport",
    "check_finite",
    "load_report",
    "load_strict",
    "read_checkpoint",
    "read_metadata",
    "read_safetensors",
    "read_weights",
    "save_checkpoint",
    "save_weights",
]

Allowed = type | tuple[type, str]
SAFE: tuple[Allowed, ...] = (argparse.Namespace,)  # holds values only; many released files keep their options in one
MOST_SWELLING = 16
"""Tensors may claim this many times the bytes of their file; weights that are tied count twice."""
SMALL = 64 << 20
"""Bytes that tensors may claim however small the file is."""
HARMLESS = {"_codecs.encode", *(f"builtins.{name}" for name in ("set", "bytearray", "complex"))}


def read_checkpoint(
    path: PathLike,
    trust_pickle: bool = False,
    allow: Iterable[Allowed] = (),
    *,
    advice: str | None = "--trust-pickle",
) -> Any:
    """The full content of a file of `torch.save` or safetensors (told by its content), tensors on the CPU.

    Args:
        path: the file.
        trust_pickle: run whatever the pickle asks for. Only for files whose origin the user vouches for.
        allow: further classes that may be built, which must do no harm when filled with anything. A pair of a class and
            the full name in the file puts a stand-in where the original is not installed.
        advice: the option by which the caller's user says that he trusts a file; None where there is no such option.

    Raises:
        UserError: if the file is missing, unreadable, empty, damaged, no checkpoint, or wants a class that is not
            allowed; if its tensors claim far more memory than the file has bytes.
    """
    path = regular_file(path)
    told = told_format(path)
    if told == "safetensors" or (path.suffix == ".safetensors" and told != "torch"):
        return _read_safetensors(path)[0]
    allowed: list[Allowed] = [*SAFE, *allow]
    try:
        check_torch_archive(path)
    except Exception as error:  # zipfile, too, raises more than its own on a broken directory
        raise UserError(f"{path} is damaged or no checkpoint: {one_line(str(error))[:200]}") from error
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*allowed]):
            warnings.simplefilter("ignore")  # on old protocols and types; what matters is raised
            content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
        _check_swelling(content, path.stat().st_size)
    except Exception as error:  # torch raises nearly every class of exception on a broken file
        raise UserError(_explain(path, error, None if trust_pickle else allowed, advice)) from error
    return content


def _check_swelling(content: Any, size: int) -> None:
    """Refuses tensors that say to be far larger than their file: one number seen a thousand million times."""
    claimed, seen, waiting = 0, set[int](), [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            claimed += value.numel() * value.element_size() if value.device.type != "meta" else 0
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value
    if claimed > max(SMALL, MOST_SWELLING * size):
        raise ValueError(f"its tensors claim {claimed} bytes and the file has {size}")


def _explain(path: Path, error: Exception, allowed: list[Allowed] | None, advice: str | None) -> str:
    """The one line for a file of `torch.save` that could not be read; `allowed` None allows every class."""
    reason = one_line(str(error))
    if " " not in reason:  # a KeyError's text is the key alone
        reason = f"{type(error).__name__} {reason}".strip()
    if allowed is not None:
        told = re.findall(r"GLOBAL ([\w.]*\w)", reason)
        harmless = HARMLESS | {a[1] if isinstance(a, tuple) else f"{a.__module__}.{a.__qualname__}" for a in allowed}
        names = [name.replace("__builtin__.", "builtins.") for name in named_classes(path)]
        refused = told + [n for n in names if n not in harmless and not n.startswith(("torch.", "collections."))]
        if refused:
            line = f"{path} was not read: it wants {refused[0][:100]}, and a pickle that builds it can run code"
            return line + (f"; if you trust where the file comes from, add {advice}" if advice else "")
    return f"{path} is damaged or no checkpoint: {reason.split('. ')[0][:200]}"


def _read_safetensors(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; the library checks that shapes, types and places of the tensors fit the file."""
    check_safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = {key: value for key, value in (file.metadata() or {}).items() if key not in SEAL_KEYS}
            return {name: file.get_tensor(name) for name in file.keys()} if tensors else {}, metadata  # noqa: SIM118
    except Exception as error:  # SafetensorError, and KeyError or others on types that torch lacks
        raise UserError(f"{path} is damaged or no safetensors file: {one_line(str(error))[:200]}") from error


def read_safetensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata (without the seal) of a safetensors file.

    Raises:
        UserError: as `read_checkpoint`.
    """
    return _read_safetensors(regular_file(path))


def read_metadata(path: PathLike) -> dict[str, str]:
    """The metadata of a safetensors file, without the seal.

    Raises:
        UserError: as `read_checkpoint`.
    """
    return _read_safetensors(regular_file(path), tensors=False)[1]


def read_weights(
    path: PathLike,
    trust_pickle: bool = False,
    allow: Iterable[Allowed] = (),
    *,
    part: str | None = None,
    advice: str | None = "--trust-pickle",
    part_advice: str | None = None,
    finite: bool = True,
) -> dict[str, Tensor]:
    """The state dict in a file, wherever it stands: `paperkit.files.parts` says where it is looked for.

    The prefixes that wrappers leave in keys are taken off: those of torch.compile, FSDP and activation checkpointing
    wherever they stand, `module.` of DataParallel where every key begins with it.

    Args:
        path, trust_pickle, allow, advice: as in `read_checkpoint`.
        part: which of several state dicts is meant, by its key in the file: `teacher`, or `model.teacher` deeper down.
        part_advice: the option by which the caller's user names a part; None where there is no such option.
        finite: refuse weights with a NaN or an infinity.

    Raises:
        UserError: as `read_checkpoint`, and if there is no state dict in the file, or several and none is chosen.
    """
    content = read_checkpoint(path, trust_pickle, allow, advice=advice)
    state = without_prefixes(find_state(content, path, part, part_advice), path)
    for key, value in state.items():
        if value.device.type == "meta":
            raise UserError(f"{path} holds no numbers for {key[:100]}: it was saved from the meta device")
    if finite:
        check_finite(state, path)
    return state


def check_finite(state: Mapping[str, Tensor], source: PathLike) -> None:
    """Refuses weights that are no numbers; infinities may stand in a mask.

    Raises:
        UserError: with the source, the first such key and how many of its entries are NaN or infinite.
    """
    bad: list[str] = []
    first = ""
    for key, value in state.items():
        if not (value.is_floating_point() or value.is_complex()) or value.layout != torch.strided:
            continue
        value = value.float() if value.is_floating_point() and value.element_size() == 1 else value  # float8
        wrong = value.isnan() if "mask" in key else ~value.isfinite()
        if wrong.any():
            first = first or f"{int(wrong.sum())} of its {value.numel()} entries are NaN or infinite"
            bad.append(key)
    if bad:
        more = f"; so are some in {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(f"{source} holds weights that are no numbers: {first_few(bad[:1])} ({first}){more}")


def save_weights(path: PathLike, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes `state` as a sealed safetensors file, whole or not at all. Tensors that share memory are written apart.

    The bytes depend on nothing but the arguments.

    Raises:
        UserError: `cannot write <path>: <reason>`.
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
    """Writes `content` by `torch.save` as a sealed file, whole or not at all.

    Raises:
        UserError: `cannot write <path>: <reason>`; also if the content holds an object that `read_checkpoint` would
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
