"""Recipes for other data than THUMOS14 through the command: ActivityNet, own videos, Kinetics; and the baseline."""

import json
import socket
from pathlib import Path

import torch
from made import make_activitynet, make_kinetics, make_own, make_thumos, run_of, small, stpt, weights, write_small

SHORT = ["--cfg-options", "schedule.epochs=1", "schedule.warmup=0"]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """ActivityNet's losses are means over clips: two gloo processes of a clip each take the steps of one with two."""
    root = make_activitynet(tmp_path / "anet")
    changes = ["model.backbone.drop_path=0.0", "optim_wrapper.optimizer.type=SGD", "optim_wrapper.optimizer.lr=0.01"]
    changes += ["train_cfg.val_begin=2"]
    write_small(tmp_path / "anet.py", "activitynet/stpt.py", root, *changes, frames=256)
    stpt.here("train", "--config", "anet.py", "--name", "one", cwd=tmp_path)
    assert "one_class/mAP" in stpt.here("eval", "--ckpt", run_of(tmp_path, "one"), cwd=tmp_path).out
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = dict(WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=port)
    words = ["train", "--config", "anet.py", "--launcher", "pytorch", "--name", "two", "--cfg-options"]
    words += ["train_dataloader.batch_size=1"]
    started = [
        stpt.start(*words, cwd=tmp_path, environment={**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    for child in started:
        child.wait().with_code(0)
    first, second = weights(tmp_path, "one"), weights(tmp_path, "two")
    start = small("activitynet/stpt.py", root, frames=256)
    assert first.keys() == second.keys() and start.train_cfg.max_iters == 1
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-6)
    found = [json.loads((run_of(tmp_path, name) / "validation.json").read_text()) for name in ("one", "two")]
    assert found[0]["results"].keys() == found[1]["results"].keys()


def test_own_annotations_train(tmp_path: Path) -> None:
    """One JSON and a folder of video files: its classes become the network's, in the evaluation too."""
    make_own(tmp_path / "own", classes=("wave", "jump"), form="thumos")
    write_small(tmp_path / "small.py", "own.py", Path())
    data = ["--data.annotations", "own/annotations.json", "--data.frames", "own/videos"]
    stpt.here("train", "--config", "small.py", "--name", "own", *data, *SHORT, cwd=tmp_path)
    config = json.loads((run_of(tmp_path, "own") / "detection.json").read_text())
    assert config["model"]["detector"]["num_classes"] == 3
    stpt.here("eval", "--ckpt", run_of(tmp_path, "own"), cwd=tmp_path)
    found = json.loads((run_of(tmp_path, "own") / "detections.json").read_text())["results"]
    labels = {entry["label"] for entries in found.values() for entry in entries}
    assert found.keys() == {"validation_0", "validation_1"} and labels <= {"wave", "jump"} and labels


def test_pre_training_gives_the_backbone(tmp_path: Path) -> None:
    """Kinetics' recipe for two steps; the detector starts from that run, and without a rate it stays there."""
    root = make_kinetics(tmp_path / "kinetics")
    write_small(tmp_path / "kinetics.py", "kinetics/pretrain.py", root, "model.num_classes=2", frames=16)
    classes = [f"{loader}_dataloader.dataset.num_classes=2" for loader in ("train", "val", "test")]
    stpt.here("train", "--config", "kinetics.py", "--name", "k400", "--cfg-options", *classes, cwd=tmp_path)
    assert "acc/top1" in stpt.here("eval", "--ckpt", run_of(tmp_path, "k400"), cwd=tmp_path).out
    start = f"model.pretrained={run_of(tmp_path, 'k400')}"
    write_small(tmp_path / "small.py", "thumos14/stpt.py", make_thumos(tmp_path / "thumos", side=36))
    words = ["--config", "small.py", "--name", "started", *SHORT, start]
    words += ["optim_wrapper.optimizer.lr=0.0", "schedule.minimum=0.0"]
    assert "backbone from" in stpt.here("train", *words, cwd=tmp_path).out
    backbone = {key: value for key, value in weights(tmp_path, "k400").items() if key.startswith("backbone.")}
    started = weights(tmp_path, "started")
    assert backbone and all(torch.equal(value, started[key]) for key, value in backbone.items())


def test_the_baseline_trains(tmp_path: Path) -> None:
    """I3D by AFSD's recipe: its BatchNorm stays as it was, all else learns."""
    changes = ["model.pretrained=None", "optim_wrapper.optimizer.lr=1e-3", "train_cfg.val_begin=9"]
    changes += ["train_dataloader.dataset.stride=128", "train_dataloader.batch_size=4"]
    write_small(tmp_path / "i3d.py", "thumos14/afsd_i3d.py", make_thumos(tmp_path / "thumos", side=36), *changes)
    stpt.here("train", "--config", "i3d.py", "--name", "i3d", cwd=tmp_path)
    first, last = (weights(tmp_path, "i3d", step) for step in (1, 2))
    still = {key for key, value in first.items() if torch.equal(value, last[key])}
    assert still == {key for key in first if ".bn." in key}
