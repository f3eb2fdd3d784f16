"""Each engine through its command: killed in the middle of its second epoch and resumed, it ends with the same bits;
a full disk, a loss that is no number and missing data end it in one line.
"""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from made import here, killed, one_line, write_detection, write_images, write_segmentation
from torch import Tensor

from paperkit.files.weights import read_weights


class Engine(NamedTuple):
    """How a run of four steps is written, killed before its fourth, and read."""

    write: Callable[[Path], Path]
    kill: str
    weights: str
    data: str
    lacking: str
    diverge: list[str]


LIGHTNING = """
from litv2.{module} import {name} as training
step = training.training_step
def die_or_step(self, batch, index):
    if self.trainer.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)
training.training_step = die_or_step
"""
MMENGINE = """
from litv2.models.segmenter import SeedIteration as hook
start = hook.before_train_iter
def die_or_start(self, runner, *rest, **more):
    if runner.iter == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    start(self, runner, *rest, **more)
hook.before_train_iter = die_or_start
"""
ENGINES = {
    "images": Engine(
        write_images, LIGHTNING.format(module="image_training", name="ImageTraining"), "checkpoints/last.ckpt",
        "images", "it should hold train", ["--recipe.lr", "1e30", "--recipe.warmup_epochs", "0"],
    ),
    "detection": Engine(
        write_detection, LIGHTNING.format(module="detection_training", name="DetectionTraining"),
        "detector.safetensors", "coco", "the data root must hold", ["--detection.lr", "1e30"],
    ),
    "segmentation": Engine(
        write_segmentation, MMENGINE, "iter_4.pth", "ade", "the data root must hold",
        ["--cfg-options", "optim_wrapper.optimizer.lr=1e30"],
    ),
}  # fmt: skip


class World(NamedTuple):
    engine: Engine
    folder: Path
    config: Path

    def run(self, name: str) -> Path:
        return self.folder / "runs" / "litv2" / name

    def weights(self, name: str) -> dict[str, Tensor]:
        path = self.run(name) / self.engine.weights
        if path.name.startswith("iter"):  # mmengine's files hold its log beside the weights
            return torch.load(path, weights_only=False)["state_dict"]
        return read_weights(path)


@pytest.fixture(scope="module", params=ENGINES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data, a config, and an uninterrupted run."""
    torch.set_num_threads(1)
    engine = ENGINES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    config = engine.write(folder)
    assert here("train", config, "--name", "whole", "--root", folder / "runs") == 0
    return World(engine, folder, config)


def test_killed_and_resumed_gives_the_same_bits(world: World) -> None:
    killed(world.engine.kill, "train", world.config, "--name", "cut", cwd=world.folder)
    assert not (world.run("cut") / "finished").exists()
    torch.rand(7)  # another random state than the killed process had
    assert here("train", "--resume", world.run("cut")) == 0
    assert (world.run("cut") / "finished").exists()
    whole, cut = world.weights("whole"), world.weights("cut")
    assert whole.keys() == cut.keys() and all(torch.equal(value, cut[key]) for key, value in whole.items())


def test_a_finished_run_is_not_continued(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("train", "--resume", world.run("whole")) == 1
    assert "is finished" in one_line(capsys)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 200 kB, which a write notices as it notices a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_one_line_and_costs_nothing(
    world: World, full_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here("train", world.config, "--name", "full", "--root", world.folder / "runs") == 1
    error = one_line(capsys)
    assert error.startswith("error: cannot write") and "File too large" in error
    assert not list(world.run("full").rglob("*.tmp-*")) and not (world.run("full") / "finished").exists()


def test_a_loss_that_is_no_number_is_one_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", world.config, "--name", "nan", "--root", world.folder / "runs"]
    assert here(*words, *world.engine.diverge) == 1
    error = one_line(capsys)
    assert "not finite at" in error and "last good checkpoint: " in error


def test_missing_data_are_one_line(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "nowhere"
    option = ["--cfg-options", f"data_root={nowhere}"] if world.config.suffix == ".py" else ["--data.root", nowhere]
    assert here("train", world.config, "--name", "none", "--root", tmp_path / "runs", *option) == 1
    error = one_line(capsys)
    assert str(nowhere) in error and world.engine.lacking in error


def test_evaluation_of_a_run_folder(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("eval", "--root", world.folder / "runs", "--ckpt", world.run("whole")) == 0
    assert "mIoU" in (out := capsys.readouterr().out) or "AP" in out or "acc1" in out
