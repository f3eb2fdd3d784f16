"""The embedded experiment through the command: one shortened run, killed, resumed, evaluated; its stored trace."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from made import SNNET
from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from paperkit.data.digits import DigitsData
from paperkit.testing.golden import check_losses
from paperkit.testing.runs import check_same_runs
from snnet.experiment.run import Arms, build
from snnet.experiment.settings import METHOD, ExperimentConfig
from snnet.training.joint import JointTraining, TrainingConfig

TRACE = Path(__file__).parents[1] / "golden" / "loss_trace.json"
SHORT = [
    *("--seeds", "2", "--anchor_epochs", "6", "--joint_epochs", "10", "--measured_epochs", "[1,10]"),
    *("--scratch_every", "10", "--batch_size", "64"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    SNNET.child("train", "--name", "run", *SHORT, cwd=folder)
    return folder / "runs" / "snnet" / "run"


@pytest.mark.xdist_group("experiment")
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


@pytest.mark.xdist_group("experiment")
def test_kill_and_resume_is_bit_identical(whole: Path, tmp_path: Path) -> None:
    """kill -9 in an epoch of an anchor, and later in a joint training: the whole run folder is the same in the end.

    The parent alone is killed: its children must notice and leave.
    """
    run = tmp_path / "runs" / "snnet" / "run"
    words = ["train", "--name", "run", *SHORT]
    for marker in ("seed-10/anchor small/weights.safetensors", "seed-11/least squares/curve.json"):
        started = SNNET.start(*words, cwd=tmp_path)
        started.kill_when(run / marker, group=False, after=0.3)  # well into the next stage
        words = ["train", "--resume"]
        time.sleep(1.5)
    SNNET.child("train", "--resume", cwd=tmp_path)
    check_same_runs(whole, run)


@pytest.mark.xdist_group("experiment")
def test_signal_leaves_a_resumable_run(tmp_path: Path) -> None:
    """SIGTERM ends with 143 and one line; the run is unfinished, and eval does not take it for a finished one."""
    run = tmp_path / "runs" / "snnet" / "run"
    started = SNNET.start("train", "--name", "run", *SHORT, cwd=tmp_path)
    ended = started.kill_when(run / "seed-10" / "anchor small", signal.SIGTERM, group=False, after=0.5)
    assert "--resume" in ended.with_code(143).line
    assert not (run / "finished").exists()
    assert "no finished run" in SNNET.refused("eval", cwd=tmp_path)


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
    assert state["anchors.2.blocks.3.mlp.fc2.weight"].shape == (48, 96)
