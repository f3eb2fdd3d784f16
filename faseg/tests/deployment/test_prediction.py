"""Label maps and overlays of picture files, through the command."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faseg.commands import predict
from faseg.deployment.prediction import names_of, overlay
from faseg.models.faseg import FASeg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = FASeg(
        dict(kind="resnet", blocks=(1, 1, 1, 1), stem=8, width=8, outputs=16),
        num_classes=3,
        conv_dim=32,
        mask_dim=32,
        pixel_decoder=dict(layers=1, dim_feedforward=32, nheads=4),
        decoder=dict(num_queries=6, nheads=4, dim_feedforward=32, layers=4, omega=4),
        class_names=["sky", "road", "tree"],
        shortest=64,
        longest=256,
    )
    path = tmp_path_factory.mktemp("network") / "saved"
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize(("mode", "size"), [("RGB", (101, 70)), ("L", (20, 9)), ("P", (33, 64))])
def test_writes_overlay_and_labels(
    mode: str, size: tuple[int, int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photographs, grey pictures below 32 px, palettes."""
    Image.new("RGB", size, (90, 160, 40)).convert(mode).save(tmp_path / "scene.png")
    options = dict(ckpt=str(folder), output=str(tmp_path / "out"), top=2, device="cpu", trust_pickle=False)
    assert predict.run(Namespace(images=[str(tmp_path / "scene.png")], **options)) == 0
    assert any(f"{name} " in out for out in [capsys.readouterr().out] for name in ("sky", "road", "tree"))
    labels = Image.open(tmp_path / "out/scene_labels.png")
    assert labels.size == size and np.asarray(labels).max() < 3
    assert Image.open(tmp_path / "out/scene_overlay.png").size == size


def test_overlay_colours_each_class() -> None:
    labels = np.zeros((40, 60), np.int64)
    labels[:, 30:] = 1
    drawn = np.asarray(overlay(Image.new("RGB", (60, 40)), labels, ["a", "b"]))
    assert (drawn[0, 0] != drawn[0, -1]).any()


def test_released_networks_have_names() -> None:
    with torch.device("meta"):
        model = FASeg(num_classes=19)
    assert names_of(model)[0] == "road"
