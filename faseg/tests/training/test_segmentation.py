"""The segmentation engine through the command, on made folders of every layout: train, kill, resume, evaluate."""

import json
import os
import signal
import socket
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from made import faseg, make_ade20k, make_cityscapes, make_folder, write_small
from PIL import Image
from torch import Tensor

from paperkit.errors import UserError
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import at_call
from paperkit.testing.runs import check_same_runs
from paperkit.training.runner import RunnerEngine

NOT_COMPARED = ("*.py", "iter_*.pth", "best_*.pth", "*events.out*")
"""mmengine writes the time and the place into these, and TensorBoard's last lines are lost with the process."""
STEP = "paperkit.training.openmmlab:SeedIteration.before_train_iter"
EVALUATION = "mmseg.evaluation.metrics.iou_metric:IoUMetric.process"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With data of ADE20K's layout, a config of four iterations, and the run `whole` of it."""
    folder = tmp_path_factory.mktemp("segmentation")
    write_small(folder / "small.py", "ade20k/faseg_r50.py", make_ade20k(folder / "ade"))
    faseg.here("train", "--config", "small.py", "--name", "whole", cwd=folder)
    return folder


def run_of(folder: Path, name: str) -> Path:
    return folder / "runs" / "faseg" / name


def weights(folder: Path, name: str, file: str = "iter_4.pth") -> dict[str, Tensor]:
    return torch.load(run_of(folder, name) / file, weights_only=False)["state_dict"]  # it holds mmengine's log as well


KILLS = {
    "before its evaluation": (EVALUATION, 1, signal.SIGKILL, -9),  # the last step is saved, its worth is not known yet
    "in a step": (STEP, 4, signal.SIGKILL, -9),
    "by SIGTERM": (STEP, 2, signal.SIGTERM, 143),  # nothing is saved yet
}


@pytest.mark.parametrize("kill", KILLS)
def test_killed_and_resumed_gives_the_same_run(folder: Path, kill: str) -> None:
    function, number, sent, code = KILLS[kill]
    name = kill.replace(" ", "_")
    patch = at_call(function, number, sent)
    faseg.child("train", "--config", "small.py", "--name", name, cwd=folder, patch=patch, code=code)
    assert not (run_of(folder, name) / "finished").exists()
    faseg.child("train", "--resume", name, cwd=folder, patch="import torch; torch.rand(7)")
    first, second = weights(folder, "whole"), weights(folder, name)
    assert first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
    check_same_runs(run_of(folder, "whole"), run_of(folder, name), NOT_COMPARED)


def test_every_weight_learns_but_the_frozen_norms(folder: Path) -> None:
    early, late = weights(folder, "whole", "iter_2.pth"), weights(folder, "whole")
    still = {key for key, value in early.items() if torch.equal(value, late[key])}
    assert all((".norm." in key and key.startswith("backbone.")) or "empty_weight" in key for key in still), still


@pytest.mark.parametrize("words", [[], ["--best"], ["--test", "slide"], ["--test", "multi_scale"]], ids=" ".join)
def test_a_run_evaluates(folder: Path, words: list[str]) -> None:
    """Whole, its best checkpoint, by windows, and at several sizes."""
    out = "_".join(["out", *words])
    said = faseg.here("eval", "--ckpt", run_of(folder, "whole"), *words, "--output", out, cwd=folder).out
    assert "mIoU" in said
    assert (
        Metrics.read(folder / out / "metrics.json").row("best" if words == ["--best"] else "last", "mIoU").unit == "%"
    )


def test_the_authors_files_are_evaluated(folder: Path) -> None:
    """The same network under their names has the same metrics."""
    theirs = {"decode_head.criterion.": "criterion.", "decode_head.": "sem_seg_head."}
    state = weights(folder, "whole")
    for ours, name in theirs.items():
        state = {key.replace(ours, name): value for key, value in state.items()}
    torch.save({"model": state, "iteration": 3}, folder / "official.pth")
    shown = []
    for ckpt in ("official.pth", str(run_of(folder, "whole") / "iter_4.pth")):
        faseg.here("eval", "--config", "small.py", "--ckpt", ckpt, "--output", "theirs", cwd=folder)
        shown.append([(row.metric, row.values) for row in Metrics.read(folder / "theirs" / "metrics.json").rows])
    assert shown[0] == shown[1]


def test_weights_that_do_not_fit_are_one_line(folder: Path) -> None:
    """mmengine would warn, and evaluate a network of random weights."""
    torch.save({"state_dict": {"backbone.stem.conv1.weight": torch.zeros(8, 3, 7, 7)}}, folder / "other.pth")
    line = faseg.refused("eval", "--config", "small.py", "--ckpt", "other.pth", cwd=folder)
    assert "other.pth" in line


def test_a_loss_that_is_no_number_is_one_line(folder: Path) -> None:
    words = ["--cfg-options", "optim_wrapper.optimizer.lr=1e30"]
    line = faseg.refused("train", "--config", "small.py", "--name", "nan", *words, cwd=folder)
    assert "not finite at" in line and "last good checkpoint: " in line


def test_half_precision_trains(folder: Path) -> None:
    words = ["--amp", "--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=2"]
    faseg.here("train", "--config", "small.py", "--name", "half", *words, cwd=folder)
    half, whole = weights(folder, "half", "iter_2.pth"), weights(folder, "whole", "iter_2.pth")
    assert all(value.isfinite().all() and value.dtype == whole[key].dtype for key, value in half.items())


def test_two_processes_train_one_network(folder: Path) -> None:
    """Two gloo processes of one picture each: both end with the same weights, which are not those of one alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    words = ["train", "--config", "small.py", "--launcher", "pytorch", "--name", "two", "--cfg-options"]
    words += ["train_dataloader.batch_size=1", "train_cfg.max_iters=2", "train_cfg.val_interval=2"]
    patch = (
        "import torch, os\nfrom mmengine.runner import Runner\n_train = Runner.train\n"
        "def train(self):\n    _train(self)\n"
        "    total = sum(p.double().sum() for p in self.model.parameters()).item()\n"
        "    open('sum' + os.environ['RANK'], 'w').write(repr(total))\n"
        "Runner.train = train\n"
    )
    common = dict(WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=port)
    started = [
        faseg.start(*words, cwd=folder, patch=patch, environment={**common, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    for child in started:
        child.wait().with_code(0)
    assert (folder / "sum0").read_text() == (folder / "sum1").read_text()
    two, whole = weights(folder, "two", "iter_2.pth"), weights(folder, "whole", "iter_2.pth")
    assert two.keys() == whole.keys() and (run_of(folder, "two") / "finished").exists()
    assert any(not torch.equal(value, whole[key]) for key, value in two.items())


SHORT = ["--cfg-options", "train_cfg.max_iters=1", "train_cfg.val_interval=1", "default_hooks.checkpoint.interval=1"]


@pytest.mark.parametrize("name", ["cityscapes/faseg_r50", "ade20k/faseg_swin_t", "camvid/faseg_r50"])
def test_other_layouts_and_networks_train(tmp_path: Path, name: str) -> None:
    kind = name.split("/")[0]
    if kind == "cityscapes":
        root = make_cityscapes(tmp_path / "data", 2)
    elif kind == "ade20k":
        root = make_ade20k(tmp_path / "data", 2)
    else:
        root = make_folder(tmp_path / "data", 2, ("train", "val", "test"), palette=False)
        image = Image.open(root / "trainannot" / "0.png").convert("L")
        image.putpixel((0, 0), 11)  # void
        image.save(root / "trainannot" / "0.png")
    write_small(tmp_path / "small.py", f"{name}.py", root)
    faseg.here("train", "--config", "small.py", "--name", "one", *SHORT, cwd=tmp_path)
    state = weights(tmp_path, "one", "iter_1.pth")
    assert state["decode_head.predictor.class_embed.bias"].shape == (dict(cityscapes=20, ade20k=151, camvid=12)[kind],)
    counted = [key for key in state if key.endswith("num_batches_tracked")]
    assert bool(counted) == (kind == "cityscapes")
    if kind == "camvid":
        assert "mIoU" in faseg.here("eval", "--ckpt", run_of(tmp_path, "one"), cwd=tmp_path).out


def test_a_folder_of_palette_masks_trains(folder: Path, tmp_path: Path) -> None:
    """Through the config of ADE20K: the folder's classes and pictures in place of its own, in the evaluation too."""
    make_folder(tmp_path / "own")
    words = ["--config", folder / "small.py", "--data.kind", "folder", "--data.root", "own", "--data.void", "9", "11"]
    faseg.here("train", *words, "--name", "own", *SHORT, cwd=tmp_path)
    config = json.loads((run_of(tmp_path, "own") / "segmentation.json").read_text())
    assert config["model"]["decode_head"]["num_classes"] == 4
    assert config["val_dataloader"]["dataset"]["classes"] == ["ground", "small", "middle", "large"]
    assert config["val_dataloader"]["dataset"]["void"] == [9, 11]
    assert config["param_scheduler"][0]["end"] == 2
    assert "mIoU" in faseg.here("eval", "--ckpt", run_of(tmp_path, "own"), cwd=tmp_path).out


def test_bad_folders_are_one_line(folder: Path, tmp_path: Path) -> None:
    """Unmatched pairs all at once; a label that is no class, by its file; no list of classes; no folder."""
    make_folder(tmp_path / "own")
    words = ["train", "--config", folder / "small.py", "--data.kind", "folder"]
    assert "--data.root DIR" in faseg.refused(*words, cwd=tmp_path)
    words += ["--data.root", "own", *SHORT]
    for lost in ("train/0.png", "trainannot/1.png", "trainannot/2.png"):
        os.remove(tmp_path / "own" / lost)
    line = faseg.refused(*words, "--name", "unmatched", cwd=tmp_path)
    assert all(f"own/{lost}" in line for lost in ("trainannot/0.png", "train/1.png", "train/2.png"))
    make_folder(tmp_path / "second", palette=False)
    words[words.index("own")] = "second"
    for i in range(4):
        Image.new("L", (90, 70), 9).save(tmp_path / "second" / "trainannot" / f"{i}.png")
    line = faseg.refused(*words, "--name", "label", cwd=tmp_path)
    assert "second/trainannot/" in line and "holds the number 9; the 4 classes are 0 to 3" in line
    os.remove(tmp_path / "second" / "classes.txt")
    assert "second/classes.txt" in faseg.refused(*words, "--name", "names", cwd=tmp_path)


def test_odd_pictures_train(folder: Path, tmp_path: Path) -> None:
    """Grey, of fewer than 32 pixels, of odd sizes, and without a single label."""
    root = make_folder(tmp_path / "own", 3)
    for i, (mode, size) in enumerate((("L", (20, 17)), ("RGB", (31, 77)), ("RGB", (91, 33)))):
        Image.new(mode, size, 90).save(root / "train" / f"{i}.png")
        Image.new("L", size, 255 if i else 1).save(root / "trainannot" / f"{i}.png")
    words = ["--config", folder / "small.py", "--data.kind", "folder", "--data.root", "own", "--name", "odd"]
    faseg.here("train", *words, *SHORT, "train_dataloader.batch_size=3", cwd=tmp_path)
    assert all(value.isfinite().all() for value in weights(tmp_path, "odd", "iter_1.pth").values())


def test_what_libraries_print_on_import_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_loud_library.py").write_text("print('I lack a part that you never asked for')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="no config"):
        RunnerEngine("paper", "kept.json", ("a_loud_library",)).resolved(Namespace(config=None), None)
    assert capsys.readouterr().out == ""


def test_a_run_folder_runs_nothing(folder: Path, tmp_path: Path) -> None:
    """A type that is a path to code, in the config that a stranger's run keeps."""
    run = run_of(tmp_path, "evil")
    run.mkdir(parents=True)
    for name in ("config.yaml", "started", "segmentation.json", "iter_4.pth"):
        (run / name).write_bytes((run_of(folder, "whole") / name).read_bytes())
    config = json.loads((run / "segmentation.json").read_text())
    config["custom_hooks"].append({"type": "os.mkdir", "path": "ran"})
    (run / "segmentation.json").write_text(json.dumps(config))
    assert "is no registered name" in faseg.refused("train", "--resume", "evil", cwd=tmp_path)
    assert "is no registered name" in faseg.refused("eval", "--ckpt", run, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()
