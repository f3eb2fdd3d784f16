"""The impossible options that users of FASeg give, through the command: one line each, and no run that looks done."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made import faseg, make_folder, write_small

from faseg.cli import ENGINES
from paperkit.testing.hostile import check_a_config_runs_nothing

DIGITS = ["train", "--engine", "scenes"]
REAL = ["train", "--config", "small.py"]
CHANGE = [*REAL, "--cfg-options"]
OWN = [*REAL, "--data.kind", "folder", "--data.root"]
CASES: dict[str, tuple[list[Any], str]] = {
    "no windows": ([*DIGITS, "--omega", "17"], "omega 17 keeps none of the 16 windows"),
    "width": ([*DIGITS, "--width", "20"], "width 20 is no multiple of 8"),
    "split": ([*DIGITS, "--split", "train"], "split 'train' is neither test nor val"),
    "no config": (["train", "--engine", "segmentation"], "no config: name a Python file of mmengine with --config"),
    "lost config": (["train", "--config", "nowhere.py"], "nowhere.py"),
    "broken config": (["train", "--config", "broken.py"], "broken.py is no mmengine config"),
    "lost data": ([*CHANGE, "data_root=nowhere"], "nowhere"),
    "no value": ([*CHANGE, "seed"], "--cfg-options seed: give key=value"),
    "no root": ([*REAL, "--data.kind", "folder"], "--data.kind folder needs its folder: --data.root DIR"),
    "no folder": ([*OWN, "nowhere"], "classes.txt"),
    "twice": ([*OWN, "twice"], "'car' twice"),
    "one class": ([*OWN, "single"], "num_classes 1: give two or more"),
    "no masks": ([*OWN, "bare"], "trainannot"),
    "backbone file": ([*CHANGE, "model.backbone.pretrained=lost.pth"], "no ImageNet weights at lost.pth: put"),
    "backbone norm": ([*CHANGE, "model.backbone.norm=GN"], "norm 'GN' is none of FrozenBN, BN, SyncBN"),
    "positions": ([*CHANGE, "model.decode_head.key_pos=cosine"], "key_pos 'cosine' is none of"),
    "no omega": ([*CHANGE, "model.decode_head.decoder.omega=0"], "omega 0"),
    "no weights": (["eval", "--config", "small.py"], "no weights"),
    "other weights": (["eval", "--config", "small.py", "--ckpt", "other.pth"], "other.pth"),
    "torn weights": (["eval", "--config", "small.py", "--ckpt", "torn.pth"], "torn.pth"),
    "one name": (["predict", "a/x.png", "b/x.png", "--ckpt", "other.pth"], "both be written as x_overlay.png"),
    "foreign weights": (["predict", "x.png", "--ckpt", "other.pth"], "other.pth holds neither FASeg nor Mask2Former"),
    "no rows": (["predict", "x.png", "--ckpt", "other.pth", "--top", "0"], "top 0 is below 1"),
    "convert nothing": (["convert", "nowhere.pth", "out"], "nowhere.pth"),
    "export nothing": (["export", "--ckpt", "nowhere"], "nowhere"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_small(folder / "small.py", "ade20k/faseg_r50.py", folder / "ade")
    (folder / "broken.py").write_text("model = dict(")
    for name, classes in (("twice", "car\nroad\ncar\n"), ("single", "car\n"), ("bare", "car\nroad\n")):
        make_folder(folder / name, 1)
        (folder / name / "classes.txt").write_text(classes)
    for path in (folder / "bare" / "trainannot").iterdir():
        path.unlink()
    torch.save({"state_dict": {"decode_head.other": torch.zeros(2)}}, folder / "other.pth")
    (folder / "torn.pth").write_bytes((folder / "other.pth").read_bytes()[:200])
    return folder


@pytest.mark.parametrize("name", CASES)
def test_one_line(name: str, folder: Path) -> None:
    words, message = CASES[name]
    assert message in faseg.refused(*words, cwd=folder)
    assert not list(folder.rglob("finished"))


@pytest.mark.parametrize(
    ("engine", "option"), [("scenes", "seeds"), ("segmentation", "cfg_options"), ("segmentation", "data")]
)
def test_a_config_runs_nothing(engine: str, option: str, tmp_path: Path) -> None:
    assert engine in ENGINES
    check_a_config_runs_nothing(faseg, {"engine": engine}, option, tmp_path)
