"""Exported files: one file, written whole, free batch, and the difference that is returned is the real one."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from paperkit import export
from paperkit.errors import UserError
from paperkit.export import export_onnx, export_program


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(256, 5)
    )


class Counting(nn.Module):
    """Branches on its numbers, which no tracing can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum().item() > 0 else x


def test_a_program_runs_for_other_batches_and_says_its_difference(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "deep" / "model.pt2"
    assert export_program(model, torch.randn(1, 3, 8, 8), path) < 1e-6
    assert os.listdir(path.parent) == ["model.pt2"]
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(torch.export.load(str(path)).module()(images), model.eval()(images))


def test_a_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    export_program(network(), torch.randn(1, 3, 8, 8), path, dynamic_batch=False)
    loaded = torch.export.load(str(path)).module()
    assert loaded(torch.randn(1, 3, 8, 8)).shape == (1, 5)
    with pytest.raises((AssertionError, RuntimeError), match=r"[Gg]uard|shape"):
        loaded(torch.randn(4, 3, 8, 8))


def test_the_difference_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was read back with other weights shows as its whole difference."""
    load = torch.export.load

    class Shifted:
        def __init__(self, path: str) -> None:
            self.program = load(path).module()

        def module(self, check_guards: bool) -> Callable[[Tensor], Tensor]:
            return lambda x: self.program(x) + 0.25

    monkeypatch.setattr(torch.export, "load", Shifted)
    difference = export_program(network(), torch.randn(2, 3, 8, 8), tmp_path / "model.pt2")
    assert difference == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("write", [export_program, export_onnx])
def test_what_cannot_be_exported_is_one_line(write: Callable[..., float], tmp_path: Path) -> None:
    if write is export_onnx:
        pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match=r"Counting cannot be exported to \S+: \w+") as caught:
        write(Counting(), torch.randn(2, 3), tmp_path / "model")
    assert len(str(caught.value)) < 400 and not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*model\.pt2: File too large"):
            export_program(network(), torch.randn(2, 3, 8, 8), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.pt2"]


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(export.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"ONNX export needs onnx, .* pip install 'paperkit\[onnx\]'"):
        export_onnx(network(), torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")


def test_onnx_is_one_file_with_its_weights(tmp_path: Path) -> None:
    """Above the size from which torch puts weights beside the file, if it is let."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3000), nn.ReLU(), nn.Linear(3000, 7))
    path = tmp_path / "model.onnx"
    assert export_onnx(model, torch.randn(1, 3, 8, 8), path) < 1e-4
    assert os.listdir(tmp_path) == ["model.onnx"] and path.stat().st_size > 2_300_000
    images = torch.randn(4, 3, 8, 8)
    (logits,) = runtime.InferenceSession(str(path)).run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-4)
