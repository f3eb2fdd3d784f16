"""The embedded experiment through the command: one shortened run, ended and resumed, evaluated; its stored trace."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import SNNET
from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from paperkit.data.digits import DigitsData
from paperkit.files.runs import RunFolder
from paperkit.files.weights import read_checkpoint
from paperkit.testing.commands import Ended, at_call
from paperkit.testing.golden import check_losses
from paperkit.testing.runs import check_same_runs
from snnet.experiment.figures import draw
from snnet.experiment.run import Arms, build, measure_seed
from snnet.experiment.settings import METHOD, ExperimentConfig, from_plain
from snnet.experiment.summary import summarise
from snnet.training.joint import JointTraining, TrainingConfig

TRACE = Path(__file__).parents[1] / "golden" / "loss_trace.json"
SHORT = [
    *("--seeds", "1", "--anchor_epochs", "6", "--joint_epochs", "10", "--measured_epochs", "[1,10]"),
    *("--scratch_every", "20", "--batch_size", "64", "--depth", "3"),
]
TINY = [
    *("--seeds", "1", "--anchor_epochs", "2", "--joint_epochs", "3", "--measured_epochs", "[1,3]"),
    *("--scratch_every", "20", "--batch_size", "64", "--depth", "2"),
]
JOINT = 3 * 18  # steps of a joint training
IN_ONE_PROCESS = """
import snnet.experiment.engine, snnet.experiment.run as run
def here(work, seeds, arguments, *rest, **options):
    return {seed: run.run_seed(seed, lambda steps: None, **arguments) for seed in seeds}
snnet.experiment.engine.run_seeds = here
run.SAVE_EVERY = 7
"""
"""Seeds in the command's own process, where a patch finds them, with checkpoints within an epoch of 18 steps."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    SNNET.here("train", "--name", "run", *SHORT, cwd=folder)
    return folder / "runs" / "snnet" / "run"


def test_train_and_eval(whole: Path) -> None:
    """The safe claims hold, the folder is complete, and eval finds the same numbers from the weights alone."""
    trained = json.loads((whole / "metrics.json").read_text())
    asserted = {claim["text"]: claim["held"] for claim in trained["claims"] if claim["asserted"]}
    assert len(asserted) == 4
    assert all(asserted.values()), asserted
    shown = SNNET.here("eval", cwd=whole.parents[2]).out
    evaluated = json.loads((whole / "metrics.json").read_text())
    assert evaluated["rows"] == trained["rows"]
    assert "mean of all stitches" in shown
    for name in ("config.yaml", "env.json", "finished", *(f"figures/{f}.png" for f in ("stitches", "initialisation"))):
        assert (whole / name).stat().st_size > 0, name
    assert list(whole.rglob("events.out.tfevents.*"))
    assert not list(whole.rglob("*.ckpt")), "a finished stage keeps its weights, not its checkpoints"


def test_two_seeds_are_a_mean_and_a_spread(whole: Path, tmp_path: Path) -> None:
    """Rows, claims and figures of two seeds, the second a little better than the first."""
    config = from_plain(RunFolder(whole).read_config())
    first = measure_seed(10, whole, config)
    better = {arm: {i: value + 2 for i, value in found.items()} for arm, found in first.arms.items()}
    metrics = summarise([first, replace(first, seed=11, arms=better)], config, 1.0)
    assert metrics.seeds == [10, 11]
    row = metrics.row("anchor small", "accuracy")
    assert row.values == [first.arms["anchor small"][0], first.arms["anchor small"][0] + 2]
    assert all(claim.held for claim in metrics.claims if claim.asserted)
    assert len(draw(metrics, tmp_path)) == 4 and all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_kill_and_resume_is_bit_identical(tmp_path: Path) -> None:
    """Ended seven times, and moved: the whole run folder is that of the run that never was.

    By kill -9 within an epoch, before and after a stage's weights, and between a curve's point and its checkpoint; by
    SIGTERM in the last step of a measured epoch, in least squares, and between two trainings, where nothing more is
    trained.
    """
    run, moved = tmp_path / "runs" / "snnet" / "run", tmp_path / "moved"
    seed = moved / "seed-10"

    def ended(function: str, call: int, number: int, *words: str | Path) -> Ended:
        patch = IN_ONE_PROCESS + at_call(function, call, number)
        code = -number if number == signal.SIGKILL else 128 + number
        return SNNET.child("train", *words, cwd=tmp_path, patch=patch, code=code)

    SNNET.child("train", "--name", "whole", *TINY, cwd=tmp_path, patch=IN_ONE_PROCESS)
    step, stage = "snnet.training.joint:JointTraining.training_step", "snnet.experiment.run:"
    ended(step, 30, signal.SIGKILL, "--name", "run", *TINY)
    assert read_checkpoint(run / "seed-10" / "anchor small" / "last.ckpt")["global_step"] == 28
    assert "SIGTERM" in ended(stage + "initialise", 1, signal.SIGTERM, "--resume").line
    assert "step 18; resume with: snnet train --resume" in ended(step, 18, signal.SIGTERM, "--resume").line
    curve = json.loads((run / "seed-10" / "least squares" / "curve.json").read_text())
    assert list(curve) == ["0", "1"]
    run.rename(moved)
    ended(stage + "remove_checkpoints", 4, signal.SIGKILL, "--resume", moved)  # three stages are done already
    assert (seed / "least squares" / "weights.safetensors").exists() and (seed / "least squares" / "last.ckpt").exists()
    ended(stage + "write_json", 4, signal.SIGKILL, "--resume", moved)  # after the fit and epochs 0 and 1
    assert read_checkpoint(seed / "default initialisation" / "last.ckpt")["global_step"] == JOINT - 5
    ended(stage + "save_weights", 2, signal.SIGKILL, "--resume", moved)
    assert read_checkpoint(seed / "small tuned alone" / "last.ckpt")["global_step"] == JOINT
    assert "SIGTERM" in ended(stage + "Arms.from_scratch", 1, signal.SIGTERM, "--resume", moved).line
    assert not (seed / "from scratch").exists()
    SNNET.child("train", "--resume", moved, cwd=tmp_path, patch=IN_ONE_PROCESS)
    check_same_runs(run.with_name("whole"), moved)


def test_signal_leaves_a_resumable_run(tmp_path: Path) -> None:
    """SIGTERM to the command, whose seeds are processes of their own: 143 and one line, and no finished run for eval.

    The first process alone is told; those of the seeds must notice and leave.
    """
    run = tmp_path / "runs" / "snnet" / "run"
    started = SNNET.start("train", "--name", "run", *SHORT, cwd=tmp_path)
    ended = started.kill_when(run / "seed-10" / "anchor small", signal.SIGTERM, group=False, after=0.5)
    assert "--resume" in ended.with_code(143).line
    assert not (run / "finished").exists()
    assert "no finished run" in SNNET.refused("eval", cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--widths", "[4,4,8]"], "widths [4, 4, 8] must grow"),
        (["--widths", "[16,8,48]"], "widths [16, 8, 48] must grow"),
        (["--widths", "[8,16,50]"], "heads 4 does not divide width 50"),
        (["--depth", "1000000"], "depth 1000000 must be at most 100"),
        (["--seeds", "0"], "seeds 0 must be at least 1"),
        (["--joint_epochs", "0"], "joint_epochs 0 must be at least 1"),
        (["--init_images", "0"], "init_images 0 must be at least 1"),
        (["--batch_size", "2000"], "batch_size 2000 and val_images 0: 1197 images train"),
        (["--stitches_per_step", "5"], "stitches_per_step 5 does not divide batch_size 32"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_would_fail_later_is_refused_before_training(words: list[str], message: str, tmp_path: Path) -> None:
    assert message in SNNET.refused("train", *words, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_of_somebody_else_is_no_larger_than_an_experiment(tmp_path: Path) -> None:
    """A run folder whose settings ask for a million blocks, or seeds."""
    for name in ("depth", "seeds"):
        run = RunFolder.create(tmp_path / "runs", "snnet", name)
        run.write_config({"engine": "digits", name: 1_000_000})
        for words in (["list", "--ckpt", run.path], ["train", "--resume", name]):
            assert f"{name} 1000000 must be at most" in SNNET.refused(*words, cwd=tmp_path)


class KeepLosses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *rest: Any) -> None:
        self.losses.append(outputs["loss"].item())


def test_loss_trace(tmp_path: Path) -> None:
    """The first 20 losses of the joint training, from least squares on untrained anchors, are the stored ones."""
    config = ExperimentConfig()
    arms, kept = Arms(10, lambda steps: None, tmp_path, config), KeepLosses()
    network = arms.initialised(build(config, 10), METHOD)
    training = JointTraining(network, TrainingConfig(), arms.optim(config.joint_lr), 10, seed=10)
    arms.trainer(tmp_path, 1, [kept]).fit(training, DigitsData(config.batch_size, seed=10))
    check_losses(kept.losses[:20], TRACE)


def test_weights_are_plain_safetensors(whole: Path) -> None:
    """Anybody's safetensors reads them, under the released key scheme."""
    state = load_file(whole / "seed-10" / "least squares" / "weights.safetensors")
    assert state["stitch_layers.0.0.transform.weight"].shape == (16, 8)
    assert state["anchors.2.blocks.2.mlp.fc2.weight"].shape == (48, 96)
