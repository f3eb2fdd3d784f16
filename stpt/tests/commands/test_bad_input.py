"""The impossible options and data that users of STPT give, through the command: one line each, and no run that looks
done. Bad videos are in `test_prepare.py`, `test_detect.py` and `training/test_videos.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made import make_own, stpt, write_small

from paperkit.testing.hostile import check_a_config_runs_nothing
from stpt.cli import ENGINES

REAL = ["train", "--config", "small.py", "--data.frames", "own/videos", "--data.annotations"]
GOOD = [*REAL, "own/annotations.json"]
CHANGE = [*GOOD, "--cfg-options"]
CASES: dict[str, tuple[list[Any], str]] = {
    "no config": (["train", "--engine", "detection"], "no config: name a Python file of mmengine with --config"),
    "lost config": (["train", "--config", "nowhere.py"], "nowhere.py"),
    "broken config": (["train", "--config", "broken.py"], "broken.py is no mmengine config"),
    "no value": ([*CHANGE, "seed"], "--cfg-options seed: give key=value"),
    "lost data": (["train", "--config", "small.py", "--data.root", "nowhere"], "nowhere"),
    "lost frames": ([*GOOD, "--data.frames", "nowhere"], "no folder of frames or videos at"),
    "lost annotations": ([*REAL, "nowhere.json"], "nowhere.json"),
    "no subset": ([*REAL, "plain.json"], "no video has the field `subset`"),
    "other subset": ([*GOOD, "--data.subsets", "train", "test"], "no video is of the subset 'train'"),
    "past the end": ([*REAL, "past.json"], "while the video ends at 14 s"),
    "negative": ([*REAL, "negative.json"], "which begins before the video"),
    "empty action": ([*REAL, "empty.json"], "which has no length"),
    "unknown class": ([*REAL, "unknown.json"], "has the unknown class 'dance'; known: wave, jump"),
    "absent video": ([*REAL, "absent.json"], "1 of 3 videos have no frames"),
    "too short": ([*CHANGE, "model.detector.frames=8"], "has a clip of 8 frames with a whole action"),
    "crop": ([*CHANGE, "train_dataloader.dataset.size=[24,24]"], "a crop of 32 pixels does not fit"),
    "crops": ([*CHANGE, "val_dataloader.dataset.pipeline.1.size=28"], "clips of one size, and CropClip has 32 in"),
    "no clip length": ([*CHANGE, "model.detector.frames=many"], "model.detector.frames 'many': give a whole number"),
    "no batch": ([*CHANGE, "train_dataloader.batch_size=0"], "train_dataloader.batch_size 0: give a whole number"),
    "hold out all": ([*GOOD, "--data.hold_out", "1"], "--data.hold_out 1 would keep every video out"),
    "hold out none": ([*GOOD, "--data.hold_out", "5"], "--data.hold_out 5 of 2 training videos keeps none out"),
    "warm-up": ([*CHANGE, "schedule.epochs=1"], "a warm-up of 1 epochs in a run of 1"),
    "backbone": ([*CHANGE, "model.backbone.name=vit"], "backbone 'vit' is none of stpt"),
    "kind": ([*CHANGE, "model.backbone.kinds=LLXG"], "X"),
    "norm": ([*CHANGE, "model.detector.head_norm=bn"], "head_norm 'bn' is none of gn, ln"),
    "pretrained": ([*CHANGE, "model.pretrained=lost.pth"], "lost.pth"),
    "no weights": (["eval", "--config", "small.py"], "no weights"),
    "other weights": (["eval", *GOOD[1:], "--ckpt", "other.pth"], "other.pth"),
    "torn weights": (["eval", *GOOD[1:], "--ckpt", "torn.pth"], "torn.pth"),
}


def write_annotations(path: Path, source: Path) -> None:
    """Altered copies of good annotations, by what is wrong with them."""
    good = json.loads((source / "annotations.json").read_text())

    def altered(name: str, change: Any) -> None:
        content = json.loads(json.dumps(good))
        change(content, content["database"]["training_0"])
        (path / f"{name}.json").write_text(json.dumps(content))

    altered("plain", lambda content, _: [entry.pop("subset") for entry in content["database"].values()])
    for name, segment in (("past", [13.0, 20.0]), ("negative", [-1.0, 2.0]), ("empty", [3.0, 3.0])):
        altered(name, lambda _, entry, segment=segment: entry["annotations"][0].update(segment=segment))
    altered("unknown", lambda content, entry: (content.update(classes=["wave", "jump"]),
                                               entry["annotations"][0].update(label="dance")))  # fmt: skip
    altered("absent", lambda content, entry: content["database"].update(training_7=entry))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_small(folder / "small.py", "own.py", Path())
    (folder / "broken.py").write_text("model = dict(")
    write_annotations(folder, make_own(folder / "own"))
    torch.save({"state_dict": {"backbone.other": torch.zeros(2)}}, folder / "other.pth")
    (folder / "torn.pth").write_bytes((folder / "other.pth").read_bytes()[:200])
    return folder


@pytest.mark.parametrize("name", CASES)
def test_one_line(name: str, folder: Path) -> None:
    words, message = CASES[name]
    assert message in stpt.refused(*words, cwd=folder)
    assert not list(folder.rglob("finished"))


def test_what_may_be_mended_or_left_out_trains(folder: Path) -> None:
    """Segments past the end are cut and absent videos skipped where that is asked for; doubles do no harm."""
    short = ["--cfg-options", "schedule.epochs=1", "schedule.warmup=0", "train_cfg.val_begin=9"]
    content = json.loads((folder / "past.json").read_text())
    entry = content["database"]["training_0"]
    entry["annotations"] += entry["annotations"][1:]
    content["database"]["training_7"] = entry
    (folder / "all.json").write_text(json.dumps(content))
    words = [*REAL, "all.json", "--data.faults", "mend", "--data.missing", "skip", "--root", "mended"]
    stpt.here(*words, *short, cwd=folder)
    for path in (folder / "mended").rglob("finished"):
        path.unlink()


@pytest.mark.parametrize(
    ("engine", "option"), [("clips", "seeds"), ("detection", "cfg_options"), ("detection", "data")]
)
def test_a_config_runs_nothing(engine: str, option: str, tmp_path: Path) -> None:
    assert engine in ENGINES
    check_a_config_runs_nothing(stpt, {"engine": engine}, option, tmp_path)
