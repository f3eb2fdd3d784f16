"""Foreign pickles of arrays: read as they are, and nothing else built or believed."""

import io
import os
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from paperkit.files.array_pickles import load_arrays


def read(content: Any, protocol: int = 2) -> Any:
    return load_arrays(io.BytesIO(pickle.dumps(content, protocol)))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i8", "u1", "?"])
def test_arrays_come_back(kind: str, protocol: int) -> None:
    """In either byte order and either order of the entries, and without shape."""
    plain = np.arange(6).reshape(2, 3).astype(kind)
    read_back = read(OrderedDict(plain=plain, turned=np.asfortranarray(plain), one=np.array(plain[1, 1])), protocol)
    expected = torch.from_numpy(plain.astype(plain.dtype.newbyteorder("=")))
    for name in ("plain", "turned"):
        assert torch.equal(read_back[name].tensor(), expected)
    assert read_back["one"].tensor().shape == () and float(read_back["one"]) == plain[1, 1]


def test_numbers_objects_and_tensors_come_back() -> None:
    found = read({1: np.float64(2.5), "t": torch.arange(3), "o": np.array([{3: 4.0}], dtype=object)})
    assert found[1] == 2.5 and torch.equal(found["t"], torch.arange(3)) and found["o"].content == [{3: 4.0}]
    with pytest.raises(ValueError, match="an array of objects"):
        found["o"].tensor()


class Evil:
    """Runs a command where it is read by pickle."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


class Claims:
    """An array of a few bytes that says it has a terabyte."""

    def __reduce__(self) -> Any:
        empty = np.zeros(3)
        function, arguments, (version, _, *rest) = empty.__reduce__()
        return function, arguments, (version, (1 << 40,), *rest)


def test_other_classes_and_false_sizes_are_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"system is no number, array or tensor"):
        read(Evil())
    with pytest.raises(ValueError, match="cannot reshape array of size 3"):
        read(Claims())
    with pytest.raises(pickle.UnpicklingError, match="is no type of a number"):
        read(np.array(["text"]))
