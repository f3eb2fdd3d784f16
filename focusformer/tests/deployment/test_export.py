"""A sub-network leaves the house: its folder, torch.export, ONNX; and predicts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made import focusformer
from PIL import Image

from focusformer.method.architecture import Architecture, SearchSpace, SuperSizes
from focusformer.models.folders import SavedSupernet
from focusformer.models.static_vit import StaticViT

SIZES = SuperSizes(32, 3, 4, 4.0, head_dim=8, img_size=32, patch_size=8, num_classes=6, max_relative_position=3)
SPACE = SearchSpace(SIZES, (24, 32), (2, 3), (2, 4), (2.0, 4.0))
TEXT = "24/3,1/1.5,2.5"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet of random numbers in `super`, a sub-network of it in `cut`, and an image."""
    folder = tmp_path_factory.mktemp("deploy")
    supernet = SavedSupernet(SPACE.to_plain())
    generator = torch.Generator().manual_seed(1)
    for parameter in supernet.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    supernet.save_pretrained(folder / "super")
    supernet.save_pretrained(folder / "seed-0" / "uniform" / "model")  # as the embedded experiment keeps them
    focusformer.here("extract", TEXT, "--ckpt", "super", "--output", "cut", cwd=folder)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 80, 3), dtype=np.uint8)).save(folder / "a.png")
    return folder


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def test_extract(place: Path) -> None:
    supernet, model = SavedSupernet.from_pretrained(place / "super"), StaticViT.from_pretrained(place / "cut")
    expected = supernet(images(3), Architecture.parse(TEXT))
    torch.testing.assert_close(model(images(3)), expected, rtol=1e-5, atol=1e-5)
    config = json.loads((place / "cut" / "config.json").read_text())
    assert config["architecture"] == TEXT and config["head_dim"] == 8 and config["num_classes"] == 6
    out = focusformer.here("extract", TEXT, "--ckpt", "super", cwd=place).out
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count:,} parameters" in out and "logits differ from the supernet's by" in out
    assert (place / "runs/focusformer/extract/24_3,1_1.5,2.5/model.safetensors").is_file()


@torch.no_grad()
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_export(form: str, place: Path) -> None:
    """From the extracted folder, and from the supernet by naming the architecture."""
    words = ("export", "--to", form, "--output", form)
    source = ("--ckpt", "cut") if form == "torch" else ("--ckpt", "super", "--architecture", TEXT)
    assert "logits differ from PyTorch's by" in focusformer.here(*words, *source, cwd=place).out
    model = StaticViT.from_pretrained(place / "cut")
    for batch in (1, 5):
        expected = model(images(batch))
        if form == "torch":
            found = torch.export.load(place / form / "model.pt2").module()(images(batch))
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(place / form / "model.onnx", providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"images": images(batch).numpy()})[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_wrong_export_is_not_passed_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "old").mkdir()
    (place / "old" / "model.pt2").write_text("the older file")
    monkeypatch.setattr("focusformer.deployment.exporting.export_program", lambda model, example, path: 0.5)
    said = focusformer.refused("export", "--ckpt", "cut", "--output", "old", cwd=place)
    assert "old/model.pt2 was not written: a logit would differ from PyTorch's by 0.5" in said
    assert (place / "old" / "model.pt2").read_text() == "the older file"


def test_predict(place: Path) -> None:
    alone = focusformer.here("predict", "a.png", "--ckpt", "cut", "--top", "3", cwd=place).out
    within = focusformer.here(
        "predict", "a.png", "--ckpt", "super", "--architecture", TEXT, "--top", "3", cwd=place
    ).out
    assert alone == within and alone.count("class ") == 3
    assert torch.is_grad_enabled()


BAD = {
    "no architecture": (["predict", "a.png", "--ckpt", "super"], "is a supernet: name an architecture with"),
    "another one": (
        ["predict", "a.png", "--ckpt", "cut", "--architecture", "24/1/1"],
        f"is the sub-network {TEXT}, not",
    ),
    "no image": (["predict", "none.png", "--ckpt", "cut"], "no image at none.png"),
    "no class": (["predict", "a.png", "--ckpt", "cut", "--top", "0"], "--top 0: 1 class at least"),
    "too wide": (["extract", "64/4/4", "--ckpt", "super"], "embedding width 64 is above the supernet's 32"),
    "too many heads": (["extract", "32/5/4", "--ckpt", "super"], "heads 5 is above the supernet's 4"),
    "too deep": (["extract", "32/4,4,4,4/4,4,4,4", "--ckpt", "super"], "depth 4 is above the supernet's 3"),
    "no text": (["extract", "huge", "--ckpt", "super"], "'huge' is no architecture"),
    "no supernet": (["extract", TEXT], "say with --ckpt which supernet"),
    "no weights": (["extract", TEXT, "--ckpt", "nowhere"], "nowhere"),
    "several": (["extract", TEXT, "--ckpt", "."], "holds 1 supernets; name one, such as seed-0/uniform"),
    "already cut": (["extract", TEXT, "--ckpt", "cut"], "is one sub-network"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, place: Path) -> None:
    words, said = BAD[case]
    assert said in focusformer.refused(*words, cwd=place)
