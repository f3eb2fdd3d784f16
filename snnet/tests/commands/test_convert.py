"""`snnet convert`: the authors' files to folders and back."""

from pathlib import Path

import pytest
import torch
from made import ANCHORS, here, one_line, randomise
from safetensors.torch import load_file
from torch import Tensor

from snnet.models.anchors import load_folder
from snnet.models.official import official_names, read_official, to_official
from snnet.models.released_networks import RELEASED, Released, build

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks among the released ones, by the names of their families."""
    for name, anchors in ANCHORS.items():
        entry = Released(tuple(anchors), f"{name}_release.pth", stitched_final_norm=name != "vit")
        monkeypatch.setitem(RELEASED, name, entry)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize("name", ANCHORS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_convert_there_and_back(name: str, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The authors' file to a folder and back: tensor by tensor the same; in between, the network with its weights."""
    network = build(name)
    randomise(network)
    official = {key: value.clone() for key, value in to_official(network).items()}
    split = {}
    if name == "resnet":  # trained with split BatchNorm: a second set beside each norm
        split = {
            key.replace("bn1.", "bn1.aux_bn.0."): value + 1
            for key, value in official.items()
            if key.startswith("anchors.0.bn1.")
        }
    torch.save({"model": official | split, "epoch": 3}, f"{name}_release.pth")
    assert here("convert", f"{name}_release.pth", "folder") == 0
    shown = capsys.readouterr().out
    assert f"{network.num_configurations} configurations of {name}" in shown
    assert ("split BatchNorm" in shown) == bool(split)
    loaded, _ = load_folder(Path("folder"))
    assert same(loaded.state_dict(), network.state_dict())
    assert loaded.stitched_final_norm == (name != "vit")
    assert here("convert", "folder", f"back{suffix}") == 0
    back = torch.load("back.pth", weights_only=True)["model"] if suffix == ".pth" else load_file(f"back{suffix}")
    assert same(back, official | split)


@pytest.mark.usefixtures("released")
def test_convert_by_the_library(tmp_path: Path) -> None:
    """What the command does, in Python: read_official and to_official on a network of one's own."""
    network = build("swin")
    randomise(network)
    torch.save({"state_dict": {f"module.{k}": v for k, v in to_official(network).items()}}, "file.pth")
    other = build("swin")
    aside = read_official(other, "file.pth")
    assert same(other.state_dict(), network.state_dict())
    assert same(to_official(other, aside), to_official(network))
    assert set(official_names(network)) == set(network.state_dict())


@pytest.mark.usefixtures("released")
def test_what_convert_refuses(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": to_official(build("swin"))}, "some.pth")
    assert here("convert", "some.pth", "folder") == 1
    assert "say with --released which SN-Net some.pth is of" in one_line(capsys)
    assert here("convert", "some.pth", "folder", "--released", "vit") == 1
    message = one_line(capsys)
    assert "some.pth" in message and "missing" in message and "unexpected" in message
    assert here("convert", "some.pth", "folder", "--released", "giant") == 1
    assert "no released SN-Net is called 'giant'" in one_line(capsys)
    assert not Path("folder").exists()
    assert here("convert", networks / "vit", "back.txt") == 1
    assert "ends in .pth or .safetensors" in one_line(capsys)
    Path("empty").mkdir()
    assert here("convert", "empty", "back.pth") == 1
    assert "has no config.json" in one_line(capsys)
