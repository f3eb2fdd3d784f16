"""ONNX and torch.export of a detector with its decoding against PyTorch, on several clips."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from made import stpt

from stpt.deployment.exporting import Decoded, to_onnx
from stpt.models.stpt import STPT


@pytest.fixture(scope="module")
def network() -> STPT:
    torch.manual_seed(0)
    backbone = dict(name="stpt_tiny", dims=(8, 16, 32, 32), depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))
    return STPT(backbone, dict(num_classes=3, frames=32, levels=2, channels=32, groups=8), (32, 32)).eval()


@pytest.fixture
def clips() -> torch.Tensor:
    coarse = torch.rand(3, 3, 8, 8, 8, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.interpolate(coarse, (32, 32, 32), mode="trilinear") * 2 - 1


def test_the_command_writes_a_program_that_agrees(network: STPT, clips: torch.Tensor, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "network")
    ended = stpt.here("export", "--ckpt", "network", "--output", "exported", cwd=tmp_path)
    assert "outputs differ from PyTorch's by" in ended.out
    loaded = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    for found, expected in zip(loaded(clips), Decoded(network)(clips), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_onnx_agrees(network: STPT, clips: torch.Tensor, tmp_path: Path) -> None:
    assert to_onnx(network, tmp_path / "model.onnx") < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    results = session.run(["segments", "scores"], {"clips": clips.numpy()})
    for found, expected in zip(results, Decoded(network)(clips), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)
