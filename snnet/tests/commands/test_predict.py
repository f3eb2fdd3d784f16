"""`snnet predict`: images under the transform that the network was made for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made import CLASSES, here, one_line
from PIL import Image
from timm.data import create_transform

from paperkit.data.images import ImageData
from paperkit.files.runs import RunFolder
from paperkit.testing.made_images import make_image_folder
from snnet.models.anchors import load_folder

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def scores_of(shown: str) -> list[list[tuple[str, float]]]:
    """Per printed line, (class name, percent)."""
    return [
        [(name, float(score)) for name, score, _ in (part.rsplit(" ", 2) for part in line.split(": ")[1].split(", "))]
        for line in shown.splitlines()
    ]


def test_predict(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line an image, in order, under the transform of the anchors' timm configuration."""
    images = sorted((make_image_folder(tmp_path / "images", CLASSES, per_class=1) / "val").rglob("*.JPEG"))
    assert here("predict", *images, "--ckpt", networks / "vit", "--config-id", "3", "--top", "2") == 0
    shown = scores_of(capsys.readouterr().out)
    network, _ = load_folder(networks / "vit")
    transform: Any = create_transform(
        (3, 32, 32), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9, is_training=False
    )
    assert len(shown) == 3
    for path, found in zip(images, shown, strict=True):
        with torch.no_grad():
            expected = network.eval()(transform(Image.open(path).convert("RGB"))[None], 3).softmax(-1)[0]
        best = expected.argsort(descending=True)[:2].tolist()
        assert [name for name, _ in found] == [str(i) for i in best]
        assert [score for _, score in found] == pytest.approx([100 * expected[i].item() for i in best], abs=0.051)


def test_predict_as_a_run_saw_its_images(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder brings its classes' names, its crop and its normalisation."""
    images = make_image_folder(tmp_path / "images", CLASSES, per_class=1, size=64)
    run = RunFolder.create(tmp_path / "runs", "snnet", "run")
    seen = {"crop_pct": 0.5, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "eval_interpolation": "bilinear"}
    options = {"root": str(images), "num_classes": 3, "input_size": 32, "batch_size": 3, **seen}
    run.write_config({"data": options})
    shutil.copytree(networks / "vit", run.path / "network")
    (run.path / "classes.json").write_text(json.dumps(CLASSES))
    run.mark_finished()
    paths = sorted((images / "val").rglob("*.JPEG"))
    assert here("predict", *paths, "--config-id", "8", "--top", "1") == 0
    shown = scores_of(capsys.readouterr().out)
    data = ImageData(**options, num_workers=0)  # type: ignore[arg-type]
    data.setup()
    network, _ = load_folder(networks / "vit")
    with torch.no_grad():
        expected = network.eval()(next(iter(data.val_dataloader()))[0], 8).softmax(-1)
    assert [found[0][0] for found in shown] == [CLASSES[i] for i in expected.argmax(1)]
    assert [found[0][1] for found in shown] == pytest.approx((100 * expected.max(1).values).tolist(), abs=0.051)


def test_an_image_that_is_none(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("note.png").write_text("not a picture")
    assert here("predict", "note.png", "--ckpt", networks / "vit") == 1
    assert "cannot read image note.png" in one_line(capsys)
