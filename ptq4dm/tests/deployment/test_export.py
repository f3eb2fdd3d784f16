"""A quantised U-Net as torch.export program and ONNX, run on another batch than it was traced with."""

from pathlib import Path
from typing import Any

import made
import pytest
import torch
from diffusers import UNet2DConditionModel

from paperkit.errors import UserError
from ptq4dm.deployment.exporting import example_of, export
from ptq4dm.method.calibration import Records
from ptq4dm.method.quant_model import QuantConfig, initialise_ranges, quantize


@pytest.fixture(scope="module")
def quantised() -> Any:
    """One level with cross attention, which holds every kind of layer: exporting takes time by the layer."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unet = quantize(UNet2DConditionModel(**{**made.LATENT, **blocks, "block_out_channels": (8,)}), QuantConfig(8, 8))
    initialise_ranges(unet.eval(), Records(*example_of(unet, 8)), 8)
    return unet


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_program_agrees(form: str, quantised: Any, tmp_path: Path) -> None:
    """Up to single codes at a tie: 2 % of the outputs' root mean square."""
    path, difference, scale = export(quantised, tmp_path, form)
    assert path.exists()
    assert difference < 0.02 * scale


def test_what_is_not_quantised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not quantised"):
        export(made.tiny_unet(), tmp_path)
    with pytest.raises(UserError, match="none of torch, onnx"):
        export(torch.nn.Linear(2, 2), tmp_path, "tflite")
