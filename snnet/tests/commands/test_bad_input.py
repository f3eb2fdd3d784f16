"""One line for whatever is wrong, and nothing left behind."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made import here, named_vit, one_line
from PIL import Image

from paperkit.files.runs import RunFolder
from snnet.models.anchors import SNNet

STARTS_A_PROCESS = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "pwned"]}}

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("tran") == 2
    assert "snnet has no verb 'tran'; it has: train, eval" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["list", "--anchors", "[test_vit,test_convnext]"], 1, "no family of anchors takes a ConvNeXt"),
        (["list", "--anchors", "[test_vit2,test_vit]"], 1, "anchors must go from fast to slow: anchor 0 has"),
        (["list", "--anchors", "[deit_tiny_patch16_224,deit_tiny_distilled_patch16_224]"], 1, "VisionTransformerDist"),
        (["list", "--anchors", "[vit_tiny_patch16_224,vit_small_patch32_224]"], 1, "lay out their activations differ"),
        (["list", "--anchors", "[test_vit,test_resnet]"], 1, "a plain ViT (anchor 0) does not stitch to a ResNet"),
        (["list", "--anchors", "[test_vitt]"], 1, "timm has no model 'test_vitt'"),
        (["list", "--anchors", "[]"], 1, "an SN-Net needs at least one anchor"),
        (["list", "--released", "swin_large"], 1, "no released SN-Net is called 'swin_large'; there are deit_ti_s_b"),
        (["list", "--ckpt", "nowhere"], 1, "no network at nowhere"),
        (["list", "--surprise"], 2, "surprise"),
        (["list", "--num_classes", "many"], 2, "many"),
        (["export", "--anchors", "[test_vit,test_vit2]"], 2, "config_id"),
        (
            ["export", "--anchors", "[test_vit,test_vit2]", "--config-id", "99"],
            1,
            "no configuration 99; this network has 0 to",
        ),
        (["export", "--anchors", "[test_vit,test_vit2]", "--config-id", "1", "--to", "tflite"], 2, "tflite"),
        (["predict", "nowhere.png", "--anchors", "[test_vit,test_vit2]"], 1, "no image at nowhere.png"),
        (["predict", "x.png", "--anchors", "[test_vit,test_vit2]", "--config-id", "-1"], 1, "no configuration -1"),
        (["eval"], 1, "no finished run in runs/snnet"),
        (["eval", "--ckpt", "nowhere"], 1, "no checkpoint at nowhere"),
        (["figures", "nowhere"], 1, "no checkpoint at nowhere"),
        (["figures"], 1, "no finished run"),
        (["train", "--resume"], 1, "no unfinished run in runs/snnet"),
        (["train", "--resume", "nowhere"], 1, "no run folder at runs/snnet/nowhere"),
        (["train", "--config", "nowhere.yaml"], 1, "cannot read the config nowhere.yaml"),
        (["train", "--joint_epochs", "few"], 2, "few"),
    ],
    ids=lambda value: "-".join(value)[:60] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(
    words: Sequence[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(*words) == code
    assert message in one_line(capsys)
    assert not list(Path().iterdir()), "nothing may be left behind"


def test_run_folders_that_are_none(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert here("eval", "--ckpt", "empty") == 1
    assert "is not a run folder" in one_line(capsys)
    assert here("list", "--ckpt", "empty") == 1
    assert "neither a run folder nor a folder with config.json" in one_line(capsys)
    assert here("train", "--resume", "empty") == 1
    assert "is not a run folder" in one_line(capsys)
    assert here("list", "--ckpt", networks / "vit" / "model.safetensors") == 1
    assert "say of which network with --released NAME or --anchors" in one_line(capsys)
    run = RunFolder.create("runs", "snnet", "run")
    run.write_config({"engine": "images", "data": {"root": "images"}})
    run.mark_finished()
    assert here("eval") == 1
    assert "the run did not get that far" in one_line(capsys)
    assert here("list") == 1
    assert "config.json" in one_line(capsys)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights(keep: float, networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(networks / "vit", "cut")
    whole = Path("cut/model.safetensors").read_bytes()
    Path("cut/model.safetensors").write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert here("list", "--ckpt", "cut") == 1
    assert "cut/model.safetensors" in one_line(capsys)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_checkpoint(share: float, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": SNNet(["test_vit", "test_vit2"]).state_dict()}, "cut.pth")
    whole = Path("cut.pth").read_bytes()
    Path("cut.pth").write_bytes(whole[: int(share * len(whole))])
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--ckpt", "cut.pth") == 1
    assert "cut.pth" in one_line(capsys)


def test_checkpoint_of_another_family(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = networks / "levit" / "model.safetensors"
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--ckpt", foreign) == 1
    message = one_line(capsys)
    assert "missing" in message and "unexpected" in message and "anchors." in message
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--num_classes", "5", "--ckpt", thousand()) == 1
    assert "anchors.0.head.weight" in one_line(capsys)


def thousand() -> Path:
    torch.save(SNNet(["test_vit", "test_vit2"]).state_dict(), "thousand.pth")
    return Path("thousand.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"anchors": [{**named_vit(16), "depth": 1_000_000}, named_vit(32)]},
            "depth 1000000; 1000 blocks are the most",
        ),
        ({"anchors": [{**named_vit(16), "depth": 900}, named_vit(32)]}, "a far larger model than"),
        ({"anchors": [named_vit(16)] * 3000}, "3000 anchors are more than 64"),
        ({"anchors": [named_vit(16)] * 60}, "a far larger model than"),
        ({"anchors": [{**named_vit(16), "embed_dim": 200_000}, named_vit(32)]}, "a far larger model than"),
        ({"num_classes": 10**9}, "config.json"),
        ({"in_chans": 1}, "anchors.0.patch_embed.proj.weight"),
        ({"anchors": [{**named_vit(16), "in_chans": 1}, named_vit(32)]}, "in_chans 1, which all anchors share"),
        ({"anchors": "vit"}, "config.json"),
        ({"window": "two"}, "config.json"),
    ],
)
def test_a_config_asks_for_no_more_than_its_weights(
    change: dict[str, Any], message: str, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In seconds, whatever `config.json` says."""
    shutil.copytree(networks / "vit", "folder")
    path = Path("folder/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    start = time.process_time()
    assert here("list", "--ckpt", "folder") == 1
    assert message in one_line(capsys)
    assert time.process_time() - start < 10


def test_a_network_of_one_channel(capsys: pytest.CaptureFixture[str]) -> None:
    """Grey images are images too: its costs, a file of one stitch, a prediction."""
    SNNet([named_vit(16), named_vit(32)], num_classes=3, in_chans=1).save_pretrained("grey")
    Image.new("RGB", (40, 40), (9, 9, 9)).save("grey.png")
    assert here("list", "--ckpt", "grey") == 0
    assert here("export", "--ckpt", "grey", "--config-id", "0", "--output", "out") == 0
    assert here("predict", "grey.png", "--ckpt", "grey") == 0
    assert "9 configurations" in capsys.readouterr().out


def test_the_home_folder_in_an_option(
    networks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`~` after `=`, which no shell expands: a network, a folder to write, a config, and a path within a config."""
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    shutil.copytree(networks / "vit", "home/vit")
    assert here("list", "--ckpt=~/vit") == 0
    assert here("export", "--ckpt=~/vit", "--config-id=0", "--output=~/out") == 0
    assert Path("home/out/model.pt2").exists() and not Path("~").exists()
    recipe = {"engine": "images", "network": {"weights": "~/anchors"}, "data": {"root": "~/pictures"}}
    Path("home/recipe.yaml").write_text(yaml.safe_dump(recipe))
    capsys.readouterr()
    assert here("train", "--config=~/recipe.yaml") == 1
    assert str(Path("home/pictures").absolute()) in one_line(capsys)


class Hostile:
    """Unpickled without care, makes a file."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_pickle_runs_only_when_trusted(protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    network = SNNet(["test_vit", "test_vit2"])
    torch.save({"model": network.state_dict(), "args": Hostile()}, "hostile.pth", pickle_protocol=protocol)
    words = ["list", "--anchors", "[test_vit,test_vit2]", "--ckpt", "hostile.pth"]
    assert here(*words) == 1
    message = one_line(capsys)
    assert "mkdir" in message and "--trust-pickle" in message
    assert not Path("pwned").exists()
    assert here(*words, "--trust-pickle") == 0
    assert Path("pwned").exists()


def test_a_bare_pickle(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bare.pth").write_bytes(pickle.dumps({"model": Hostile()}))
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--ckpt", "bare.pth") == 1
    assert "bare.pth" in one_line(capsys)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "hostile",
    [
        {"network": {"anchors": [{"name": "test_vit", "zz": STARTS_A_PROCESS}]}},
        {"network": {"anchors": [STARTS_A_PROCESS]}},
        {"network": STARTS_A_PROCESS},
        {"teacher": STARTS_A_PROCESS},
        {"trainer": {"strategy": STARTS_A_PROCESS}},
        {"data": {"root": STARTS_A_PROCESS}},
    ],
    ids=str,
)
def test_a_config_builds_no_class(hostile: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """As a config, and as the settings of a run that somebody else sent."""
    content = {"engine": "images", "data": {"root": "images"}} | hostile
    Path("hostile.yaml").write_text(yaml.safe_dump(content))
    assert here("train", "--config", "hostile.yaml") in (1, 2)
    one_line(capsys)
    run = RunFolder.create("runs", "snnet", "run")
    run.write_config(content)
    assert here("train", "--resume", "run") in (1, 2)
    one_line(capsys)
    assert not list(Path().rglob("pwned"))
