"""Weights in the .pkl files of detectron2's model zoos: a pickled dict with arrays or tensors under `model`.

Mask2Former's checkpoints and the ImageNet backbones of detectron2 are such files.
"""

from pathlib import Path

from torch import Tensor

from paperkit.errors import UserError, one_line
from paperkit.files.array_pickles import PickledArray, load_arrays
from paperkit.files.bounded import regular_file
from paperkit.files.parts import find_state
from paperkit.files.weights import check_finite


def read_pickled_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a .pkl file of detectron2.

    Raises:
        UserError: a missing or damaged file, one that wants anything but weights, weights that are no numbers.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            content = load_arrays(file, encoding="latin1")
        state = content["model"]
        state = {key: value.tensor() if isinstance(value, PickledArray) else value for key, value in state.items()}
    except Exception as error:  # pickle, numpy and torch raise nearly every class on a damaged file
        raise UserError(f"{path} is no weight file of detectron2: {one_line(str(error))[:200]}") from error
    state = find_state(state, path)
    check_finite(state, path)
    return state
