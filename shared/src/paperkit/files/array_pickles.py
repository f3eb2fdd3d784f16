"""Pickles of arrays, tensors and tables of numbers by foreign tools, read without building anything else.

numpy's own types are not filled from a pickle: they believe what it says of memory. Plain stand-ins take their place,
and whatever else a file asks for is refused before it is built.
"""

import io
import pickle
import re
from typing import Any, BinaryIO

import numpy as np
import torch


class _Type:
    """What stands in a pickle for numpy's type of a number, such as `f8`, or of Python's objects, `O8`."""

    def __init__(self, name: str, *flags: Any) -> None:
        if not re.fullmatch(r"[fiu][1248]|b1|O8?", name):
            raise pickle.UnpicklingError(f"{name!s:.40} is no type of a number")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = "<" if state[1] in ("<", "|") else ">"

    def numbers(self, content: bytes | str) -> np.ndarray:
        """Of objects there are none. Python 2 wrote bytes as text."""
        content = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(content, np.dtype(self.order + self.name))


class PickledArray:
    """What stands in a pickle for an array.

    `content` is an array of the numbers, in the shape and byte order of the file, or a list of Python's objects.
    """

    content: Any = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, columns_first, content = state
        is_list = isinstance(content, list)
        self.content = content if is_list else kind.numbers(content).reshape(shape, order="F" if columns_first else "C")

    def __float__(self) -> float:
        return float(self.content.item())

    def tensor(self) -> torch.Tensor:
        """The numbers as a tensor of their own.

        Raises:
            ValueError: Python's objects.
        """
        if not isinstance(self.content, np.ndarray):
            raise ValueError("an array of objects holds no weights")
        return torch.from_numpy(self.content.astype(self.content.dtype.newbyteorder("="), order="C", copy=True))


def load_arrays(file: BinaryIO, encoding: str = "ASCII") -> Any:
    """The content of one pickle: dicts, lists and numbers as they are, tensors, arrays as `PickledArray`.

    Args:
        encoding: `latin1` for what Python 2 wrote.

    Raises:
        pickle.UnpicklingError: it asks for any other class; any other exception for a damaged file.
    """
    return _Unpickler(file, encoding=encoding).load()


class _Unpickler(pickle.Unpickler):
    """Refuses every class but those of numbers, arrays and tensors."""

    def find_class(self, module: str, name: str) -> Any:
        core = module.replace("numpy._core", "numpy.core")
        allowed: dict[tuple[str, str], Any] = {
            ("numpy", "dtype"): _Type,
            ("numpy", "ndarray"): PickledArray,
            ("numpy.core.multiarray", "scalar"): lambda kind, content: float(kind.numbers(content).item()),
            ("numpy.core.multiarray", "_reconstruct"): PickledArray,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _storage,
            ("collections", "OrderedDict"): dict,
        }
        if (core, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is no number, array or tensor")
        return allowed[core, name]


def _from_buffer(content: Any, kind: _Type, shape: tuple[int, ...], order: str) -> PickledArray:
    """An array as protocol 5 of pickles writes it."""
    array = PickledArray()
    array.__setstate__((1, shape, kind, order == "F", bytes(content)))
    return array


def _storage(data: bytes) -> Any:
    """What torch's own loader does for a storage inside a foreign pickle, but with tensors alone allowed."""
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
