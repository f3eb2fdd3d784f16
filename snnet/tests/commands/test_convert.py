"""`snnet convert`: the authors' files to folders and back."""

from pathlib import Path

import pytest
import torch
from made import ANCHORS, SNNET, here, one_line, randomise
from safetensors.torch import load_file
from torch import Tensor

from snnet.models.anchors import SNNet, load_folder
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


def write_limited(words: list[str | Path], limit: int) -> str:
    """The line of a command that finds no room for a file of more than `limit` bytes."""
    return SNNET.child(*words, cwd=Path.cwd(), limit=limit, patch=KNOWN_HERE, code=1).line


KNOWN_HERE = f"""
from snnet.models.released_networks import RELEASED, Released
RELEASED["resnet"] = Released(tuple({ANCHORS["resnet"]!r}), "resnet_release.pth")
"""


@pytest.mark.usefixtures("released")
def test_a_full_disk_leaves_the_older_folder(networks: Path) -> None:
    """By convert, in the network's file or in the one beside it; by export; and nothing half written stays."""
    network = build("resnet")
    official = {key: value.clone() for key, value in to_official(network).items()}
    torch.save({"model": official}, "resnet_release.pth")
    assert here("convert", "resnet_release.pth", "folder") == 0
    before = {path.name: path.read_bytes() for path in Path("folder").iterdir()}
    randomise(network)
    changed = {key: value.clone() for key, value in to_official(network).items()}
    many = {f"anchors.0.bn1.aux_bn.0.{leaf}": torch.ones(100_000) for leaf in ("weight", "bias")}
    torch.save({"model": changed | many}, "resnet_release.pth")
    size = len(before["model.safetensors"])
    for limit in (size // 2, size + 10_000):
        assert "cannot write" in write_limited(["convert", "resnet_release.pth", "folder"], limit)
        assert {path.name: path.read_bytes() for path in Path("folder").iterdir()} == before
    words = ["export", "--ckpt", networks / "vit", "--config-id", "4", "--output", "out"]
    assert "cannot write" in write_limited(words, 20_000)
    assert not Path("out").exists() and not list(Path().glob("*.tmp-*"))


@pytest.mark.usefixtures("released")
def test_one_of_several_state_dicts(capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint with averaged weights beside the trained ones, and one with a teacher and a student."""
    trained, averaged = (dict(to_official(randomised("vit"))) for _ in range(2))
    torch.save({"model": trained, "model_ema": averaged}, "vit_release.pth")
    assert here("convert", "vit_release.pth", "trained") == 0
    assert here("convert", "vit_release.pth", "averaged", "--part", "model_ema") == 0
    torch.save({"student": trained, "teacher": averaged}, "vit_release.pth")
    capsys.readouterr()
    assert here("convert", "vit_release.pth", "none") == 1
    line = one_line(capsys)
    assert "holds 2 state dicts" in line and "--part student" in line
    assert here("convert", "vit_release.pth", "teacher", "--part", "teacher") == 0
    assert here("convert", "vit_release.pth", "none", "--part", "tutor") == 1
    assert "no part 'tutor'" in one_line(capsys)
    assert not Path("none").exists()
    students = [SNNet(["test_vit", "test_vit2"]).state_dict() for _ in range(2)]
    torch.save(dict(zip(("net", "net_ema"), students, strict=True)), "two.pth")
    words = ["list", "--anchors", "[test_vit,test_vit2]", "--ckpt", "two.pth"]
    assert here(*words) == 1 and "--part net" in one_line(capsys)
    assert here(*words, "--part", "net_ema") == 0
    for name, state in (("trained", trained), ("averaged", averaged), ("teacher", averaged)):
        assert same(dict(to_official(load_folder(Path(name))[0])), state)


def randomised(name: str) -> SNNet:
    network = build(name)
    randomise(network)
    assert isinstance(network, SNNet)
    return network


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
