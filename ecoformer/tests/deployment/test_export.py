"""The network leaves the house: torch.export and ONNX, with its codes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import TINY, ecoformer, fitted_pvt
from PIL import Image

from ecoformer.deployment.exporting import export
from ecoformer.models.pvt import PVTv2
from paperkit.errors import UserError


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_export(form: str, tmp_path: Path) -> None:
    fitted_pvt().save_pretrained(tmp_path / "model")
    out = ecoformer.here("export", "--ckpt", tmp_path / "model", "--to", form, "--size", "64", "--output", tmp_path).out
    assert "logits differ" in out and len(list(tmp_path.glob("model.*"))) == 1


def test_unfitted_hash_does_not_leave(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the hash of block1\.0\.attn was never fitted"):
        export(PVTv2(**TINY), tmp_path, size=64)


def test_predict(tmp_path: Path) -> None:
    model = fitted_pvt()
    model.save_pretrained(tmp_path / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 80, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ("predict", tmp_path / "a.png", "--ckpt", tmp_path / "model", "--size", "64")
    out = ecoformer.here(*words, "--top", "3").out
    assert out.count("class ") == 3
    assert "the smallest image is 32 x 32" in ecoformer.refused(*words[:-1], "16")
    assert "no image at" in ecoformer.refused("predict", tmp_path / "none.png", "--ckpt", tmp_path / "model")
    assert torch.is_grad_enabled()
