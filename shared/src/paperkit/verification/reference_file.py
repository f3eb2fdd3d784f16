"""A reference file as read from disk: the given tensors and options that a paper's results are compared with.

A safetensors file's metadata holds `kind` (the rule that computes it), `config` (JSON: sizes and options) and
`describes`; its tensors are `sd.*` (state), `in.*`, `out.*` and `grad.*`. JSON and pth files have as their
kind the longest kind name that the file's name begins with.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.bounded import parse_json, read_json
from paperkit.files.weights import Allowed, read_checkpoint, read_safetensors


class _Named(dict[str, Any]):
    """A dict whose missing keys are the user's news: they raise a `UserError` that names the key."""

    def __init__(self, content: Mapping[str, Any], what: str) -> None:
        super().__init__(content)
        self.what = what

    def __missing__(self, key: str) -> Any:
        raise UserError(f"missing {self.what}{key}")


@dataclass(frozen=True)
class ReferenceFile:
    """One reference file as read from disk.

    `config` is the metadata's JSON (of a JSON file: its whole content); `content` is what a pth file held;
    `metadata` holds every further string of the safetensors header. Asking `tensors`, `state`, `inputs`,
    `outputs`, `gradients` or `config` for a key that is not there raises a UserError that names it.
    """

    path: Path
    kind: str
    config: dict[str, Any] = field(repr=False)
    describes: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    content: Any = field(default=None, repr=False)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix` (`"sd_before."`), without it."""
        found = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        return _Named(found, f"tensor {prefix}")

    @property
    def state(self) -> dict[str, Tensor]:
        """State dict under the authors' key names."""
        return self.part("sd.")

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Inputs, names without `in.`."""
        return self.part("in.")

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Results, names without `out.`."""
        return self.part("out.")

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Gradients, names without `grad.`."""
        return self.part("grad.")

    def largest(self, prefix: str) -> float:
        """Largest absolute value over all tensors of a prefix (0 without any): scale of a whole model's gradients."""
        return max((t.abs().max().item() for t in self.part(prefix).values() if t.numel()), default=0.0)

    @classmethod
    def read(cls, path: str | Path, kinds: Iterable[str], allow: Iterable[Allowed] = ()) -> "ReferenceFile":
        """Reads a `.safetensors`, `.json` or `.pth` file.

        Args:
            allow: classes that a `.pth` file may hold, see `paperkit.files.weights.read_checkpoint`.

        Raises:
            UserError: unreadable or truncated file, broken or missing metadata, a kind that is not in `kinds`.
        """
        path, kinds = Path(path), list(kinds)
        if path.suffix == ".safetensors":
            return cls._read_safetensors(path, kinds)
        if path.suffix not in (".json", ".pth"):
            raise UserError(f"not a reference file: {path.suffix or 'no suffix'}; need .safetensors, .json or .pth")
        kind = max((k for k in kinds if path.name.startswith(k)), key=len, default="")
        if not kind:
            raise UserError(f"unknown kind: the name begins with none of {', '.join(sorted(kinds))}")
        with _without_path(path):
            if path.suffix == ".pth":
                return cls(path, kind, _Named({}, "option "), content=read_checkpoint(path, allow=allow, advice=None))
            content = read_json(path, "reference file")
        return cls(path, kind, _object(content, "content"), content=content)

    @classmethod
    def _read_safetensors(cls, path: Path, kinds: Sequence[str]) -> "ReferenceFile":
        with _without_path(path):
            tensors, metadata = read_safetensors(path)
        if lacking := {"kind", "config"} - metadata.keys():
            raise UserError(f"broken metadata: no {' and no '.join(sorted(lacking))}")
        if (kind := metadata.pop("kind")) not in kinds:
            raise UserError(f"unknown kind {kind!r}; known: {', '.join(sorted(kinds))}")
        try:
            config = parse_json(metadata.pop("config"))
        except ValueError as error:
            raise UserError(f"broken metadata: config is not JSON ({error})") from error
        describes = metadata.pop("describes", "")
        return cls(path, kind, _object(config, "config"), describes, _Named(tensors, "tensor "), metadata)


@contextlib.contextmanager
def _without_path(path: Path) -> Iterator[None]:
    """Readers name the file; the line of `verify` has it already."""
    try:
        yield
    except UserError as error:
        reason = str(error).removeprefix("cannot read ").removeprefix(f"{path}").lstrip(": ").removeprefix("is ")
        raise UserError(f"cannot be read: {reason}") from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"broken metadata: {what} is a JSON {type(value).__name__}, not an object")
    return _Named(value, "option ")
