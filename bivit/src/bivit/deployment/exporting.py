"""A simulated binary network outside of Python: torch.export and ONNX, batch free, image size fixed.

Both hold float weights and compute signs in float: nothing is packed in them (`bivit pack` packs).
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bivit.models.binarize import binary_layers
from bivit.models.classifier import runs_on_bits
from paperkit.errors import UserError
from paperkit.export import export_onnx, export_program

FORMS = {"torch": "model.pt2", "onnx": "model.onnx"}


def export(model: nn.Module, folder: Path, form: str = "torch", size: int = 224) -> tuple[Path, float]:
    """Writes a network as a `torch.export` program or ONNX, read back and compared.

    A number some 1e-7 from a threshold may fall to the other side elsewhere, so the difference is of the logits, and a
    sign that flips shows in it.

    Returns:
        The file, and the largest difference of a logit.

    Raises:
        UserError: a form that is not in `FORMS`, a packed network, or an image of another size than the network's.
    """
    if form not in FORMS:
        raise UserError(f"form '{form}' is none of {', '.join(FORMS)}")
    if runs_on_bits(model):
        raise UserError("packed weights run in this package alone; export the weights that they were packed from")
    for layer in binary_layers(model).values():
        if layer.scaling_factor is not None and not bool(layer.scaling_factor.any()):
            layer.start_scale()  # the first forward pass would, and a program cannot
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            model.eval()(example)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--size {size} is no size of this network's images: {reason}") from error
    path = folder / FORMS[form]
    write: Any = export_program if form == "torch" else export_onnx
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return path, write(model, example, path)
