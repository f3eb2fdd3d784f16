"""The simulated network leaves the house: torch.export and ONNX; and pictures get classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import DEIT, bivit, small, small_network
from PIL import Image

from bivit.models.binarize import METHODS
from bivit.models.classifier import save_pretrained


@pytest.mark.parametrize(
    ("form", "name"), [("torch", "swin_tiny_patch4_window7_224"), ("onnx", "deit_tiny_patch16_224")]
)
def test_export(form: str, name: str, tmp_path: Path) -> None:
    save_pretrained(small_network(name), tmp_path / "model", name, METHODS["bivit"], small(name))
    words = ("export", "--ckpt", tmp_path / "model", "--to", form, "--output", tmp_path)
    assert "logits differ" in bivit.here(*words, "--size", "32").out and len(list(tmp_path.glob("model.*"))) == 1
    assert "--size 40 is no size of this network's images" in bivit.refused(*words, "--size", "40")


def test_predict(tmp_path: Path) -> None:
    save_pretrained(small_network(), tmp_path / "model", "deit_tiny_patch16_224", METHODS["bivit"], DEIT)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 80, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ("predict", tmp_path / "a.png", "--ckpt", tmp_path / "model", "--size", "32", "--top", "3")
    out = bivit.here(*words).out
    assert out.count("class ") == 3
    assert bivit.here(*words, "--packed").out.split(": ")[1].split()[1] == out.split(": ")[1].split()[1]
    assert "no image at" in bivit.refused("predict", tmp_path / "none.png", "--ckpt", tmp_path / "model")
    assert "--size 16" in bivit.refused(*words[:-3], "16")
    assert torch.is_grad_enabled()
