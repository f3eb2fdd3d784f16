"""ONNX and torch.export of a whole network against PyTorch."""

from pathlib import Path

import onnxruntime
import pytest
import torch

from faseg.deployment.exporting import load_program, to_onnx, to_program
from faseg.models.faseg import FASeg
from paperkit.errors import UserError


def tiny() -> FASeg:
    torch.manual_seed(0)
    return FASeg(
        dict(kind="resnet", blocks=(1, 1, 1, 1), stem=8, width=8, outputs=16),
        num_classes=5,
        conv_dim=32,
        mask_dim=32,
        pixel_decoder=dict(layers=1, dim_feedforward=32, nheads=4),
        decoder=dict(num_queries=6, nheads=4, dim_feedforward=32, layers=4, omega=4),
    ).eval()


def test_exported_program_agrees_at_any_size(tmp_path: Path) -> None:
    model = tiny()
    assert to_program(model, tmp_path / "model.pt2") < 1e-4
    program, images = load_program(tmp_path / "model.pt2"), torch.randn(3, 3, 64, 160)
    outputs = model(images, masks="last")
    for found, name in zip(program(images), ("pred_logits", "pred_masks"), strict=True):
        torch.testing.assert_close(found, outputs[name], rtol=1e-3, atol=1e-4)


def test_onnx_agrees(tmp_path: Path) -> None:
    model = tiny()
    assert to_onnx(model, tmp_path / "model.onnx", (64, 128)) < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 64, 128)
    logits, masks = session.run(["logits", "masks"], {"images": images.numpy()})
    outputs = model(images, masks="last")
    torch.testing.assert_close(torch.from_numpy(logits), outputs["pred_logits"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(masks), outputs["pred_masks"], rtol=1e-3, atol=1e-3)


def test_refuses_a_size_that_is_not_padded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="500 x 512"):
        to_onnx(tiny(), tmp_path / "model.onnx", (500, 512))


def test_refuses_onnx_without_a_window(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="size 32 x 96 has 3 cells of 32 px, and omega 4 keeps none"):
        to_onnx(tiny(), tmp_path / "model.onnx", (32, 96))
