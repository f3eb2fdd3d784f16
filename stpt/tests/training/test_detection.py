"""The detection engine through the command, on made folders of every layout: train, kill, resume, evaluate, draw."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from made import make_thumos, run_of, small, stpt, weights, write_small

from paperkit.errors import UserError
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import at_call
from paperkit.testing.runs import check_same_runs
from stpt.models.conversion import load_network
from stpt.models.labels import THUMOS14

NOT_COMPARED = ("*.py", "iter_*.pth", "best_*.pth", "*events.out*")
"""mmengine writes the time and the place into these, and TensorBoard's last lines are lost with the process."""
STEP = "paperkit.training.openmmlab:SeedIteration.before_train_iter"
EVALUATION = "stpt.training.metric:TADMetric.process"
SHORT = ["--cfg-options", "schedule.epochs=1", "schedule.warmup=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With THUMOS14's layout, a config of two epochs, and the run `whole` of it."""
    folder = tmp_path_factory.mktemp("detection")
    write_small(folder / "small.py", "thumos14/stpt.py", make_thumos(folder / "thumos", side=36))
    stpt.here("train", "--config", "small.py", "--name", "whole", cwd=folder)
    return folder


KILLS = {
    "before its evaluation": (
        EVALUATION,
        3,
        signal.SIGKILL,
        -9,
    ),  # the second: the last step is saved, its worth unknown
    "by SIGTERM in a step": (STEP, 6, signal.SIGTERM, 143),
}


@pytest.mark.parametrize("kill", KILLS)
def test_killed_and_resumed_gives_the_same_run(folder: Path, kill: str) -> None:
    """Bit for bit, with random crops, turns, splices and drop path."""
    function, number, sent, code = KILLS[kill]
    name = kill.replace(" ", "_")
    patch = at_call(function, number, sent)
    stpt.child("train", "--config", "small.py", "--name", name, cwd=folder, patch=patch, code=code)
    assert not (run_of(folder, name) / "finished").exists()
    stpt.child("train", "--resume", name, cwd=folder, patch="import torch; torch.rand(7)")
    first, second = weights(folder, "whole"), weights(folder, name)
    assert first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
    check_same_runs(run_of(folder, "whole"), run_of(folder, name), NOT_COMPARED)


def test_a_run_keeps_its_held_out_part(folder: Path) -> None:
    words = ["train", "--config", "small.py", "--name", "parted", "--data.hold_out", "2", *SHORT]
    stpt.child(*words, cwd=folder, patch=at_call(STEP, 1, signal.SIGKILL), code=-9)
    line = stpt.refused("train", "--resume", "parted", "--data.hold_out", "0", cwd=folder)
    assert "--data.hold_out was 2, is 0" in line


def test_every_weight_learns(folder: Path) -> None:
    steps = sorted(int(path.stem.removeprefix("iter_")) for path in run_of(folder, "whole").glob("iter_*.pth"))
    early, late = (weights(folder, "whole", step) for step in steps)
    assert not {key for key, value in early.items() if torch.equal(value, late[key])}


def test_epochs_are_steps(folder: Path) -> None:
    """Warm-up, cosine, validation and checkpoints in numbers of batches; the clips' size is the crop's."""
    config = json.loads((run_of(folder, "whole") / "detection.json").read_text())
    per_epoch = config["train_cfg"]["val_interval"]
    assert config["train_cfg"]["max_iters"] == 2 * per_epoch and per_epoch > 1
    assert config["default_hooks"]["checkpoint"]["interval"] == per_epoch
    rise, fall = config["param_scheduler"]
    assert (rise["begin"], rise["end"], fall["begin"], fall["T_max"]) == (0, per_epoch, per_epoch, per_epoch)
    assert config["size"] == config["model"]["size"] == [32, 32]


def test_a_run_is_a_network(folder: Path) -> None:
    """For `stpt detect` and the rest: its weights, its classes, its clips' size and their frames a second."""
    network = load_network(run_of(folder, "whole"))
    assert network.settings["classes"] == list(THUMOS14) and network.settings["fps"] == 10.0
    assert network.settings["size"] == [32, 32] and network.settings["detector"]["frames"] == 128
    state = weights(folder, "whole")
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    "words", [[], ["--best"], ["--test", "afsd"], ["--test", "hard", "--policy", "opentad"]], ids=" ".join
)
def test_a_run_evaluates(folder: Path, words: list[str]) -> None:
    """Its last and its best checkpoint, which the test videos chose; other rules of suppression find otherwise."""
    out = "_".join(["out", *words])
    said = stpt.here("eval", "--ckpt", run_of(folder, "whole"), *words, "--output", out, cwd=folder).out
    assert ("chosen on the test videos themselves" in said) == ("--best" in words)
    arm = {"": "last", "--best": "best, chosen on the test videos", "--test afsd": "last, --test afsd"}
    arm = arm.get(" ".join(words), "last, --test hard, --policy opentad")
    assert Metrics.read(folder / out / "metrics.json").row(arm, "mAP@0.3").unit == "%"
    found = json.loads((folder / out / "detections.json").read_text())["results"]
    assert found.keys() == {"video_test_0000001", "video_test_0000002"} and all(found.values())


def test_figures_of_an_evaluated_run(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder, "whole")
    assert "evaluate it first" in stpt.refused("figures", run, "--output", tmp_path, cwd=folder)
    stpt.here("eval", "--ckpt", run, cwd=folder)
    stpt.here("figures", run, "--videos", "1", "--output", tmp_path, cwd=folder)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert found == {"ap_heat_map.png", "precision_recall.png", "error_breakdown.png",
                     "timelines/video_test_0000001.png"}  # fmt: skip
    (run / "detections.json").unlink()
    assert len(list((run / "timelines").rglob("*.png"))) == 2  # one of each validation


def test_a_held_out_part_chooses_the_best(folder: Path) -> None:
    """Every second training video is kept out; the truth is of it alone; the figure of the best is honest then."""
    words = ["train", "--config", "small.py", "--name", "held", "--data.hold_out", "2", *SHORT]
    stpt.here(*words, cwd=folder)
    split = json.loads((run_of(folder, "held") / "annotations.json").read_text())["database"]
    assert {name: entry["subset"] for name, entry in split.items()} == {
        "video_validation_0000001": "trained", "video_validation_0000002": "held out"}  # fmt: skip
    found = json.loads((run_of(folder, "held") / "validation.json").read_text())["results"]
    assert found.keys() == {"video_validation_0000002"}
    said = stpt.here("eval", "--ckpt", run_of(folder, "held"), "--best", "--output", "held_out", cwd=folder).out
    assert "chosen on the test videos" not in said
    assert Metrics.read(folder / "held_out" / "metrics.json").row("best", "mAP").unit == "%"
    best = next(run_of(folder, "held").glob("best_mAP_*.pth"))
    assert "best checkpoint of a run folder" in stpt.refused("eval", "--ckpt", best, "--best", cwd=folder)
    assert "keeps none out" in stpt.refused(*words[:3], "--name", "many", "--data.hold_out", "9", cwd=folder)


def test_half_precision_trains(folder: Path) -> None:
    """In bfloat16; weights stay as they are, and the result is near the one of full precision."""
    stpt.here("train", "--config", "small.py", "--name", "half", "--amp", *SHORT, cwd=folder)
    half = weights(folder, "half")
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in half.values())
    config = json.loads((run_of(folder, "half") / "detection.json").read_text())
    assert config["optim_wrapper"]["type"] == "Bfloat16OptimWrapper"


def test_a_moving_average_and_accumulation(folder: Path) -> None:
    """Their run resumes from its last whole update; what is evaluated is the average."""
    config = small(
        "thumos14/stpt.py", folder / "thumos", "optim_wrapper.accumulative_counts=2", overlay="options/ema.py"
    )
    config.dump(str(folder / "ema.py"))
    words = ["train", "--config", "ema.py", *SHORT]
    stpt.here(*words, "--name", "ema", cwd=folder)
    stpt.child(*words, "--name", "ema_killed", cwd=folder, patch=at_call(EVALUATION, 1, signal.SIGKILL), code=-9)
    stpt.here("train", "--resume", "ema_killed", cwd=folder)
    whole, killed = weights(folder, "ema"), weights(folder, "ema_killed")
    assert all(torch.equal(value, killed[key]) for key, value in whole.items())
    last = sorted(run_of(folder, "ema").glob("iter_*.pth"))[-1]
    raw = torch.load(last, weights_only=False)["ema_state_dict"]
    assert any(not torch.equal(value, raw[f"module.{key}"]) for key, value in whole.items())
    assert "mAP" in stpt.here("eval", "--ckpt", run_of(folder, "ema"), "--output", "ema_out", cwd=folder).out


def test_weights_that_do_not_fit_are_one_line(folder: Path) -> None:
    """mmengine would warn, and evaluate a network of random weights."""
    torch.save({"state_dict": {"backbone.stages.0.norm.weight": torch.zeros(8)}}, folder / "other.pth")
    assert "other.pth" in stpt.refused("eval", "--config", "small.py", "--ckpt", "other.pth", cwd=folder)


def test_a_loss_that_is_no_number_is_one_line(folder: Path) -> None:
    words = ["--cfg-options", "optim_wrapper.optimizer.lr=1e30", "schedule.warmup=0", "optim_wrapper.clip_grad=None"]
    line = stpt.refused("train", "--config", "small.py", "--name", "nan", *words, cwd=folder)
    assert "not finite at" in line and "last good checkpoint: " in line


def test_a_run_folder_runs_nothing(folder: Path, tmp_path: Path) -> None:
    """A type that is a path to code, in the config that a stranger's run keeps."""
    run = run_of(tmp_path, "evil")
    run.mkdir(parents=True)
    for path in run_of(folder, "whole").glob("*"):
        if path.name in ("config.yaml", "started", "detection.json") or path.name.startswith("iter_"):
            (run / path.name).write_bytes(path.read_bytes())
    config = json.loads((run / "detection.json").read_text())
    config["custom_hooks"].append({"type": "os.mkdir", "path": "ran"})
    (run / "detection.json").write_text(json.dumps(config))
    assert "is no registered name" in stpt.refused("train", "--resume", "evil", cwd=tmp_path)
    assert "is no registered name" in stpt.refused("eval", "--ckpt", run, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()


BROKEN: dict[str, tuple[tuple[str, ...], object, str]] = {
    "no model": (("model",), [1], "describes no detector"),
    "a name for options": (("model", "backbone"), "stpt", "describes no detector"),
    "classes": (("model", "detector", "num_classes"), 9, "20 names for 8 classes"),
    "channels": (("model", "detector", "channels"), 10**6, "far larger network"),
    "length": (("model", "detector", "frames"), 10**9, "is the most"),
    "rate": (("fps",), "10", "setting fps is '10'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_that_is_no_network(name: str, folder: Path, tmp_path: Path) -> None:
    """Nothing of the size that a stranger's config asks for is built."""
    keys, value, message = BROKEN[name]
    shutil.copy(next(run_of(folder, "whole").glob("iter_*.pth")), tmp_path)
    config = json.loads((run_of(folder, "whole") / "detection.json").read_text())
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (tmp_path / "detection.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_network(tmp_path)
