"""Weights in the .pkl files of detectron2's model zoos: a pickled dict with arrays or tensors under `model`.

Mask2Former's checkpoints and the ImageNet backbones of detectron2 are such files. An unpickler that knows arrays and
tensors alone reads them; whatever else a file asks for is refused before it is built.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paperkit.errors import UserError, one_line
from paperkit.files.bounded import regular_file
from paperkit.files.parts import find_state
from paperkit.files.weights import check_finite


def _tensor_bytes(data: bytes) -> Any:
    """What torch's own loader does for a storage inside a foreign pickle, but with tensors alone allowed."""
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


def _empty_array(*_: object) -> np.ndarray:
    """An array that the pickle then fills, whatever size it names here."""
    return np.zeros(0)


class _Arrays(pickle.Unpickler):
    """Refuses every class but those of arrays, tensors and dicts."""

    def find_class(self, module: str, name: str) -> Any:
        core = module.replace("numpy._core", "numpy.core")
        allowed: dict[tuple[str, str], Any] = {
            ("numpy", "dtype"): np.dtype,
            ("numpy", "ndarray"): "ndarray",  # the argument of the next, never called
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _tensor_bytes,
            ("collections", "OrderedDict"): dict,
        }
        if (core, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is no array, tensor or dict")
        return allowed[core, name]


def read_pickled_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a .pkl file of detectron2.

    Raises:
        UserError: a missing or damaged file, one that wants anything but weights, weights that are no numbers.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            content = _Arrays(file, encoding="latin1").load()
        state = content["model"]
        state = {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
    except Exception as error:  # pickle, numpy and torch raise nearly every class on a damaged file
        raise UserError(f"{path} is no weight file of detectron2: {one_line(str(error))[:200]}") from error
    state = find_state(state, path)
    check_finite(state, path)
    return state
