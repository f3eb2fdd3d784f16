"""The classifier outside of Python: torch.export and ONNX, batch free, image size fixed."""

from pathlib import Path

import torch

from ecoformer.method.attention import eco_layers
from ecoformer.models.classifier import SMALLEST_IMAGE, PyramidClassifier
from paperkit.errors import UserError
from paperkit.export import export_onnx, export_program

FORMS = {"torch": "model.pt2", "onnx": "model.onnx"}


def export(model: PyramidClassifier, folder: Path, form: str = "torch", size: int = 224) -> tuple[Path, float]:
    """Writes a network as a `torch.export` program or ONNX, read back and compared.

    Codes are signs: a pre-activation of some 1e-7 may fall to the other side elsewhere, so the difference is of the
    logits, and a code that flips shows in it.

    Returns:
        The file, and the largest difference of a logit.

    Raises:
        UserError: a form that is not in `FORMS`, an image that is too small, a hash that was never fitted.
    """
    if form not in FORMS:
        raise UserError(f"form '{form}' is none of {', '.join(FORMS)}")
    if size < SMALLEST_IMAGE:
        raise UserError(f"--size {size}: the smallest image is {SMALLEST_IMAGE} x {SMALLEST_IMAGE} px")
    for name, layer in eco_layers(model):
        if not layer.ksh.is_fitted:
            raise UserError(
                f"the hash of {name} was never fitted; fit it with fit_hashes(model, images) before the export"
            )
    path = folder / FORMS[form]
    write = export_program if form == "torch" else export_onnx
    example = torch.randn(2, model.in_chans, size, size, generator=torch.Generator().manual_seed(0))
    return path, write(model.eval(), example, path)
