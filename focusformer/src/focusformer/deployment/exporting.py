"""A sub-network outside of Python: torch.export and ONNX, batch free, image size fixed."""

import math
from pathlib import Path

import torch

from focusformer.models.static_vit import StaticViT
from paperkit.errors import UserError
from paperkit.export import export_onnx, export_program
from paperkit.files.hub import replaced_folder

FORMS = {"torch": "model.pt2", "onnx": "model.onnx"}
LARGEST_DIFFERENCE = 1e-3
"""Of a logit; a file that differs by more is not that network."""


def export(model: StaticViT, folder: Path, form: str = "torch") -> tuple[Path, float]:
    """Writes a sub-network, reads it back and compares.

    Returns:
        The file, and the largest difference of a logit on random images.

    Raises:
        UserError: a form that is not in `FORMS`; a file that cannot be written or differs: the folder is then as it
            was.
    """
    if form not in FORMS:
        raise UserError(f"form '{form}' is none of {', '.join(FORMS)}")
    path = folder / FORMS[form]
    example = torch.randn(2, model.in_chans, model.img_size, model.img_size, generator=torch.Generator().manual_seed(0))
    with replaced_folder(folder) as temporary:
        write = export_program if form == "torch" else export_onnx
        difference = write(model.eval(), example, temporary / path.name)
        if math.isnan(difference):
            raise UserError(f"{path} was not written: its logits are no numbers, or onnxruntime is not installed")
        if difference > LARGEST_DIFFERENCE:
            raise UserError(f"{path} was not written: a logit would differ from PyTorch's by {difference:.2g}")
    return path, difference
