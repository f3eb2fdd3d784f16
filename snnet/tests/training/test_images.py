"""Training and evaluation on real images through the command: whole, killed, on two processes, gone wrong."""

import csv
import json
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from made import CLASSES, SNNET, here, named_vit, one_line, randomise, write_recipe
from torch import Tensor

from paperkit.data.images import ImageData
from paperkit.data.seeding import seed_generators
from paperkit.files.weights import read_checkpoint, read_weights
from paperkit.testing.commands import at_call
from paperkit.testing.made_images import make_image_folder
from paperkit.testing.runs import check_same_runs
from paperkit.training.optim import OptimConfig, build
from snnet.method.least_squares import initialise
from snnet.method.losses import StitchLoss
from snnet.method.sampling import IdStream
from snnet.models.anchors import load_folder
from snnet.training.images import NetworkConfig, build_network
from snnet.training.joint import TrainingConfig, parameter_groups

pytestmark = pytest.mark.xdist_group("images")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and the recipe; 24 training images are 6 steps an epoch."""
    folder = tmp_path_factory.mktemp("real")
    make_image_folder(folder / "images", CLASSES, per_class=8, size=40)
    write_recipe(folder / "recipe.yaml", folder / "images")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run and its evaluation, both through the console script."""
    SNNET.child("train", "--config", "recipe.yaml", "--name", "whole", "--save_every", "2", cwd=folder)
    SNNET.child("eval", cwd=folder)
    return folder / "runs" / "snnet" / "whole"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged_ids(run: Path) -> list[int]:
    """The ids of rank 0, step by step."""
    rows = csv.DictReader((run / "csv" / "metrics.csv").open())
    return [int(float(row["train/config_id"])) for row in rows if row["train/config_id"]]


def anchors_with(**options: object) -> str:
    """The recipe's anchors, the first with further options, as words of a command line."""
    return json.dumps([{**named_vit(16), **options}, named_vit(32)])


def test_a_run_leaves_what_it_should(whole: Path) -> None:
    for name in ("config.yaml", "env.json", "finished", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (whole / name).stat().st_size > 0, name
    assert list((whole / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((whole / "classes.json").read_text()) == list(CLASSES)
    assert read_checkpoint(whole / "checkpoints" / "last.ckpt")["global_step"] == 18
    network, _ = load_folder(whole / "network")
    weights = read_checkpoint(whole / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(value, weights[f"network.{key}"]) for key, value in network.state_dict().items())
    best = read_checkpoint(whole / "checkpoints" / "best.ckpt")["state_dict"]
    kept = read_weights(whole / "best" / "model.safetensors")
    assert all(torch.equal(value, best[f"network.{key}"]) for key, value in kept.items())


def test_every_step_ran_the_id_that_the_seed_draws(whole: Path) -> None:
    assert logged_ids(whole) == np.random.RandomState(0).randint(0, 9, size=18).tolist()


def test_best_is_the_epoch_of_highest_mean_accuracy(whole: Path) -> None:
    """The mean over both anchors and five stitches spread evenly over the seven; the first of equals."""
    rows = [row for row in csv.DictReader((whole / "csv" / "metrics.csv").open()) if row["val/acc1"]]
    means = [float(row["val/acc1"]) for row in rows]
    each = [[float(v) for key, v in row.items() if key.startswith("val/acc1_")] for row in rows]
    assert [len(values) for values in each] == [7, 7, 7]
    assert means == pytest.approx([sum(values) / 7 for values in each], abs=1e-6)
    assert read_checkpoint(whole / "checkpoints" / "best.ckpt")["epoch"] == int(np.argmax(means))


def test_eval_measures_every_configuration(whole: Path, folder: Path) -> None:
    """Each id's line against the network run by hand on the validation images."""
    subject, *results = lines_of(whole / "stitches.jsonl")
    assert [result["cfg_id"] for result in results] == list(range(9))
    network, _ = load_folder(whole / "network")
    data = ImageData(str(folder / "images"), num_classes=3, batch_size=24, input_size=32, num_workers=0)
    data.setup()
    images, labels = next(iter(data.val_dataloader()))
    for result in results:
        with torch.no_grad():
            logits = network.eval()(images, result["cfg_id"])
        correct = (logits.argmax(1) == labels).sum().item()
        assert result["acc1"] == pytest.approx(100 * correct / 24, abs=1e-4) and result["images"] == 24
        assert result["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["paper"] == "snnet" and len(metrics["rows"]) == 9
    found = {c["id"]: (c["acc1"], c["macs"], c["params"]) for c in metrics["extra"]["configurations"]}
    assert found == {r["cfg_id"]: (r["acc1"], r["flops"], r["params"]) for r in results}
    for name in ("stitches", "cuts_0_1"):
        matches = list((whole / "figures").glob(f"{name[:4]}*.png"))
        assert matches and all(path.stat().st_size > 1000 for path in matches)
    assert subject["dataset"] == "imagenet"


def test_a_second_eval_goes_on_where_the_first_ended(
    whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A figure written into the file by hand is kept, a line taken out is measured again."""
    monkeypatch.chdir(folder)
    path = whole / "stitches.jsonl"
    before = path.read_text()
    subject, *results = lines_of(path)
    changed = [{**r, "acc1": 12.5} if r["cfg_id"] == 4 else r for r in results if r["cfg_id"] != 7]
    path.write_text("".join(json.dumps(line) + "\n" for line in [subject, *changed]))
    assert here("eval") == 0
    again = {r["cfg_id"]: r for r in lines_of(path)[1:]}
    assert again[4]["acc1"] == 12.5 and again[7] == results[7] and len(again) == 9
    path.write_text(json.dumps({**subject, "weights": "of another network"}) + "\n")
    assert here("eval") == 1
    assert "remove it to evaluate anew" in capsys.readouterr().err
    path.write_text(before)
    assert here("eval") == 0
    assert path.read_text() == before


def test_an_eval_killed_half_way_goes_on(whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 in the third of three passes of three ids; six lines are there and stay as they are."""
    monkeypatch.chdir(folder)
    path = whole / "stitches.jsonl"
    before = path.read_text()
    path.unlink()
    patch = "import snnet.training.evaluation as e\ne.GROUP = 3\n" + at_call("snnet.training.evaluation:evaluate", 3)
    SNNET.child("eval", cwd=folder, patch=patch, code=-9)
    half = path.read_text()
    assert half.splitlines() == before.splitlines()[:7]
    assert here("eval") == 0
    assert path.read_text() == before


def test_the_best_weights_have_a_file_of_their_own(whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    kept = {name: (whole / name).read_bytes() for name in ("stitches.jsonl", "metrics.json")}
    assert here("eval", "--best", "--ids", "[0,3]") == 0
    assert [r["cfg_id"] for r in lines_of(whole / "stitches_best.jsonl")[1:]] == [0, 3]
    assert len(json.loads((whole / "metrics_best.json").read_text())["rows"]) == 2
    assert all((whole / name).read_bytes() == content for name, content in kept.items())


@pytest.mark.parametrize("call", ["timm:create_model", "snnet.training.images:mean_logits"])
def test_a_signal_while_models_are_built(call: str, folder: Path, tmp_path: Path) -> None:
    """143 and a line of its own, taken for no fault of the model; there is no run folder yet."""
    words = ["--config", folder / "recipe.yaml"]
    ended = SNNET.child("train", *words, cwd=tmp_path, patch=at_call(call, 1, signal.SIGTERM), code=143)
    assert "SIGTERM" in ended.line and not list(tmp_path.iterdir())


def test_eval_of_other_weights_in_a_run(whole: Path, folder: Path, tmp_path: Path) -> None:
    """`--ckpt` of a folder or a checkpoint in a run measures those weights, not the run's last ones."""
    run = tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("figures*", "metrics*", "stitches*"))
    network, _ = load_folder(run / "best")
    randomise(network)
    network.save_pretrained(run / "best")
    for place, name in (("network", "metrics"), ("best", "metrics_best"), ("checkpoints/last.ckpt", "metrics_last")):
        SNNET.here("eval", "--ckpt", run / place, "--ids", "[0,4]", cwd=folder)
        assert len(json.loads((run / f"{name}.json").read_text())["rows"]) == 2
    subjects = {name: lines_of(run / f"stitches{name}.jsonl")[0]["weights"] for name in ("", "_best", "_last")}
    assert subjects[""] == subjects["_last"] != subjects["_best"]


def test_own_classes(whole: Path, folder: Path, tmp_path: Path) -> None:
    """The number of classes follows the folder, the head knows their names, and images of others are refused."""
    words = ["--config", folder / "recipe.yaml", "--name", "run", "--trainer.max_epochs", "1"]
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    del recipe["data"]["num_classes"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    other = make_image_folder(tmp_path / "other", ("ant", "bee", "dog"), per_class=2, size=40)
    line = SNNET.refused("eval", "--ckpt", whole, "--data.root", other, "--output", tmp_path / "out", cwd=folder)
    assert "1 of the 3 classes of" in line and "dog" in line
    four = make_image_folder(tmp_path / "four", ("ant", "bee", "cow", "dog"), per_class=2, size=40)
    words = ["--config", tmp_path / "recipe.yaml", "--data.root", four, "--trainer.max_epochs", "1"]
    SNNET.here("train", *words, "--name", "run", cwd=tmp_path)
    run = tmp_path / "runs" / "snnet" / "run"
    assert load_folder(run / "network")[0].num_classes == 4
    picture = next((four / "val" / "dog").iterdir())
    for place in (run, run / "network", run / "best"):
        shown = SNNET.here("predict", picture, "--ckpt", place, "--top", "4", cwd=tmp_path).out
        assert all(name in shown for name in ("ant", "bee", "cow", "dog")), shown


def test_kill_and_resume_is_bit_identical(whole: Path, folder: Path, tmp_path: Path) -> None:
    """Ended four times, and moved after the first: the whole run folder is that of the run that never was.

    By kill -9 in the tenth step, the fourth of the second epoch (the last checkpoint is of step 8), by SIGTERM in the
    last step of that epoch, which is then evaluated before the run ends, and by SIGTERM and kill -9 when the training
    is done and its networks are being saved.
    """
    patch = at_call("snnet.training.joint:JointTraining.training_step", 10)
    recipe = folder / "recipe.yaml"
    SNNET.child("train", "--config", recipe, "--name", "run", "--save_every", "2", cwd=tmp_path, patch=patch, code=-9)
    run = tmp_path / "runs" / "snnet" / "run"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 8
    assert not (run / "finished").exists() and not (run / "network").exists()
    moved = tmp_path / "moved"
    run.rename(moved)
    patch = at_call("snnet.training.joint:JointTraining.training_step", 4, signal.SIGTERM)  # 8, 9, 10, 11
    line = SNNET.child("train", "--resume", moved, cwd=tmp_path, patch=patch, code=143).line
    assert f"interrupted at step 12; resume with: snnet train --resume {moved}" in line
    assert sorted(path.name for path in (moved / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert not run.exists()
    patch = at_call("snnet.training.images:write_class_names", 1, signal.SIGTERM)
    assert "SIGTERM" in SNNET.child("train", "--resume", moved, cwd=tmp_path, patch=patch, code=143).line
    SNNET.child(
        "train", "--resume", moved, cwd=tmp_path, patch=at_call("snnet.training.images:save_best"), code=-signal.SIGKILL
    )
    SNNET.child("train", "--resume", moved, cwd=tmp_path)
    assert (moved / "finished").exists()
    check_same_runs(whole, moved, ignore=("metrics*.json", "stitches*", "figures*", "cuts*"))  # those are of `eval`


def test_a_finished_run_is_not_resumed(
    whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = (whole / "checkpoints" / "last.ckpt").read_bytes()
    assert here("train", "--resume", whole) == 1
    assert "is finished" in one_line(capsys)
    assert here("train", "--resume") == 1
    assert "no unfinished run" in one_line(capsys)
    assert (whole / "checkpoints" / "last.ckpt").read_bytes() == before


def test_two_processes(folder: Path, tmp_path: Path) -> None:
    """Each rank trains its own ids on its own images, and the sum is what one process computes by hand.

    Two gloo processes, batches of 4, two batches accumulated, two epochs of 3 batches (the last update has one), plain
    SGD. By hand: at every batch the mean of both ranks' gradients, each of the id that rank's stream draws. The same
    with one stream for both ranks ends elsewhere.
    """
    options = ["--optim.name", "momentum", "--optim.lr", "0.05", "--optim.momentum", "0", "--optim.weight_decay", "0"]
    processes = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", "2"]
    plain = ["--network.drop_path_rate", "0", "--training.mixup", "0", "--training.cutmix", "0"]
    words = ["--config", folder / "recipe.yaml", "--name", "run", "--trainer.max_epochs", "2"]
    SNNET.process("train", *words, *plain, *options, *processes, cwd=tmp_path)
    run = tmp_path / "runs" / "snnet" / "run"
    own, other = (np.random.RandomState(seed).randint(0, 9, size=6).tolist() for seed in (0, 1))
    assert logged_ids(run) == [own[i] for i in (1, 2, 4, 5)]  # logged with every update
    assert own != other
    trained = read_weights(run / "network" / "model.safetensors")
    assert all(value.isfinite().all() for value in trained.values())
    assert difference(trained, by_hand(folder, seeds=(0, 1))) < 1e-5
    assert difference(trained, by_hand(folder, seeds=(0, 0))) > 1e-3
    rates = [float(v) for row in csv.DictReader((run / "csv" / "metrics.csv").open()) if (v := row.get("lr-SGD/pg1"))]
    assert rates and max(rates) <= 0.05


def by_hand(folder: Path, seeds: tuple[int, int]) -> dict[str, Tensor]:
    """The weights after the two-process run, in one process; `seeds` of the ranks' id streams."""
    pl.seed_everything(0, verbose=False)  # as the run does before it builds its network
    network = build_network(NetworkConfig(anchors=[named_vit(16), named_vit(32)], weights=None), 3)
    data = [
        ImageData(str(folder / "images"), num_classes=3, batch_size=4, num_workers=0, input_size=32) for _ in range(2)
    ]
    initialise(network, data[0].training_sample(20).split(20))
    for rank, part in enumerate(data):
        part.trainer = SimpleNamespace(global_rank=rank, world_size=2, overfit_batches=0, current_epoch=0)  # type: ignore[assignment]
        part.setup()
    optim = OptimConfig("momentum", lr=0.05, momentum=0.0, weight_decay=0.0, warmup_epochs=1)
    optimizer, schedule = build(parameter_groups(network, TrainingConfig(), 0.0), optim, 2, 2, 16)
    streams, loss, updates = [IdStream(range(9), seed) for seed in seeds], StitchLoss(), 0
    network.train()
    for epoch in range(2):
        loaders = [part.train_dataloader() for part in data]
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for index, batches in enumerate(zip(*loaders, strict=True)):
            for rank, (images, labels) in enumerate(batches):
                seed_generators(0, epoch, index, rank)
                chosen = streams[rank].at_step(3 * epoch + index, 1)
                (loss(network, images, labels, chosen, None) / 4).backward()  # 2 ranks, 2 accumulated batches
            if index % 2 == 1 or index == 2:
                optimizer.step()
                optimizer.zero_grad()
                updates += 1
                schedule.advance(updates)
    return dict(network.state_dict())


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max((found[key] - value).abs().max().item() for key, value in expected.items())


def test_strategies_that_shard_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for strategy in ("fsdp", "deepspeed_stage_2"):
        assert here("train", "--config", folder / "recipe.yaml", "--trainer.strategy", strategy) == 1
        assert f"strategy {strategy} shards parameters" in one_line(capsys)
    assert not (tmp_path / "runs").exists()


def test_nan_names_the_step_and_the_last_good_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One good epoch of the warm-up, then a learning rate of 1e30: the checkpoint before it still loads."""
    monkeypatch.chdir(tmp_path)
    wild = [
        "--optim.lr",
        "1e30",
        "--optim.warmup_lr",
        "1e-4",
        "--optim.warmup_epochs",
        "2",
        "--optim.step_per",
        "epoch",
    ]
    words = ["--config", folder / "recipe.yaml", "--name", "run", "--save_every", "3", *wild]
    assert here("train", *words) == 1
    message = one_line(capsys)
    assert "is not finite at step 7 (epoch 1" in message
    named = re.search(r"last good checkpoint: (\S+) \(step 6\)", message)
    assert named
    last = Path(named[1])
    assert last.parent.samefile("runs/snnet/run/checkpoints")
    content = read_checkpoint(last)
    assert content["global_step"] == 6
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    network = build_network(NetworkConfig(anchors=[named_vit(16), named_vit(32)], weights=None), 3)
    weights = {k.removeprefix("network."): v for k, v in content["state_dict"].items() if k.startswith("network.")}
    network.load_state_dict(weights)
    assert not (last.parents[1] / "finished").exists() and not (last.parents[1] / "network").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.root", "nowhere"], "nowhere"),
        (["--data.num_classes", "2"], "has 3 classes, but num_classes is 2"),
        (["--trainer.surprise", "1"], "surprise"),
        (["--network.initialisation", "magic"], "magic"),
        (["--data.input_size", "many"], "many"),
        (["--data.input_size", "40"], "does not take images of 3x40x40"),
        (["--network.init_images", "1000000000"], "init_images 1000000000 must be from 1 to 10,000"),
        (["--network.anchors", anchors_with(in_chans=1)], "in_chans 1, which all anchors share"),
        (["--network.anchors", anchors_with(num_classes=7)], "num_classes 7, which all anchors share"),
        (["--network.anchors", anchors_with(depth=1_000_000)], "depth 1000000; 1000 blocks are the most"),
        (["--network.anchors", anchors_with(checkpoint_path="x.pth")], "weights are named apart from the anchors"),
        (["--network.anchors", json.dumps([named_vit(16)] * 70)], "70 anchors are more than 64"),
        (["--data.root=~/nowhere"], f"{Path.home()}/nowhere"),
        (["--network.weights=~/nowhere", "--data.root", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_before_training_leaves_no_run_folder(
    words: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert here("train", "--config", folder / "recipe.yaml", *words) in (1, 2)
    assert message in one_line(capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.batch_size", "64"], "24 training samples do not fill one batch of 64"),
        (["--network.weights", "nowhere"], "no weights of vit_tiny_patch16_224 in nowhere"),
        (["--network.start", "nowhere.safetensors"], "no checkpoint at nowhere.safetensors"),
        (["--training.stitches_per_step", "5"], "a batch of 4 images cannot be split over 5 stitches"),
        (["--optim.name", "adamm"], "did you mean adam"),
    ],
)
def test_what_training_itself_refuses(
    words: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert here("train", "--config", folder / "recipe.yaml", *words) == 1
    assert message in one_line(capsys)


def test_start_from_weights_of_a_whole_network(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no learning rate to speak of, the end is the start: nothing is initialised anew."""
    monkeypatch.chdir(tmp_path)
    start = whole / "network" / "model.safetensors"
    still = ["--optim.lr", "1e-12", "--optim.warmup_lr", "0", "--optim.weight_decay", "0", "--trainer.max_epochs", "2"]
    assert here("train", "--config", folder / "recipe.yaml", "--name", "run", "--network.start", start, *still) == 0
    end = read_weights(tmp_path / "runs" / "snnet" / "run" / "network" / "model.safetensors")
    assert difference(end, read_weights(start)) < 1e-9


def test_the_resolved_config_is_the_recipe(whole: Path, folder: Path) -> None:
    resolved = yaml.safe_load((whole / "config.yaml").read_text())
    for section, options in yaml.safe_load((folder / "recipe.yaml").read_text()).items():
        if isinstance(options, dict):
            assert resolved[section].items() >= options.items(), section
        else:
            assert resolved[section] == options, section
