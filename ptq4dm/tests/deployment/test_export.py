"""A quantised U-Net as torch.export program and ONNX, run on another batch than it was traced with."""

from pathlib import Path

import made
import pytest
import torch

from paperkit.errors import UserError
from ptq4dm.deployment.exporting import example_of, export
from ptq4dm.method.calibration import Records
from ptq4dm.method.quant_model import QuantConfig, initialise_ranges, quantize


@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.parametrize("conditional", [False, True])
def test_program_agrees(form: str, conditional: bool, tmp_path: Path) -> None:
    """Up to single codes at a tie: 2 % of the outputs' root mean square."""
    unet = quantize(made.tiny_unet(conditional), QuantConfig(8, 8))
    initialise_ranges(unet, Records(*example_of(unet, 8)), 8)
    path, difference, scale = export(unet, tmp_path, form)
    assert path.exists()
    assert difference < 0.02 * scale


def test_what_is_not_quantised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not quantised"):
        export(made.tiny_unet(), tmp_path)
    with pytest.raises(UserError, match="none of torch, onnx"):
        export(torch.nn.Linear(2, 2), tmp_path, "tflite")
