"""The embedded experiment through the real command: one shortened run, killed, resumed, evaluated, and its stored
trace.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from paperkit.data.digits import DigitsData
from snnet.experiment.run import Arms, build
from snnet.experiment.settings import METHOD, ExperimentConfig
from snnet.training.joint import JointTraining, TrainingConfig

TRACE = Path(__file__).parents[1] / "golden" / "loss_trace.json"
SHORT = [
    *("--seeds", "2", "--anchor_epochs", "6", "--joint_epochs", "10", "--measured_epochs", "[1,10]"),
    *("--scratch_every", "10", "--batch_size", "64"),
]


def command(*words: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "snnet"
    done = subprocess.run([program, *words], cwd=cwd, capture_output=True, text=True, env=environment(), timeout=400)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def weights(run: Path) -> dict[str, bytes]:
    """Every stage's final weights, as bytes of the file."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("weights.safetensors"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    command("train", "--name", "run", *SHORT, cwd=folder)
    return folder / "runs" / "snnet" / "run"


@pytest.mark.xdist_group("experiment")
def test_train_and_eval(whole: Path) -> None:
    """The safe claims hold, the folder is complete, and eval finds the same numbers from the weights alone."""
    trained = json.loads((whole / "metrics.json").read_text())
    asserted = {claim["text"]: claim["held"] for claim in trained["claims"] if claim["asserted"]}
    assert len(asserted) == 4
    assert all(asserted.values()), asserted
    shown = command("eval", cwd=whole.parents[2]).stdout
    evaluated = json.loads((whole / "metrics.json").read_text())
    assert evaluated["rows"] == trained["rows"]
    assert "mean of all stitches" in shown
    for name in ("config.yaml", "env.json", "finished", *(f"figures/{f}.png" for f in ("stitches", "initialisation"))):
        assert (whole / name).stat().st_size > 0, name
    assert list(whole.rglob("events.out.tfevents.*"))
    assert not list(whole.rglob("*.ckpt")), "a finished stage keeps its weights, not its checkpoints"


@pytest.mark.xdist_group("experiment")
def test_kill_and_resume_is_bit_identical(whole: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of an epoch of an anchor, and later between stages; the final weights are the same
    bytes.
    """
    program = Path(sys.executable).parent / "snnet"
    words = [str(program), "train", "--name", "run", *SHORT]
    run = tmp_path / "runs" / "snnet" / "run"
    for marker in ("seed-10/anchor small/weights.safetensors", "seed-11/least squares/curve.json"):
        process = subprocess.Popen(
            words, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not (run / marker).exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.3)  # well into the next stage
        assert process.poll() is None, f"the run ended before {marker} appeared"
        os.kill(process.pid, signal.SIGKILL)  # the parent alone: its children must notice and leave
        process.wait()
        words = [str(program), "train", "--resume"]
        time.sleep(1.5)
    command("train", "--resume", cwd=tmp_path)
    resumed = weights(run)
    expected = weights(whole)
    assert resumed.keys() == expected.keys()
    assert [name for name in expected if resumed[name] != expected[name]] == []


@pytest.mark.xdist_group("experiment")
def test_signal_leaves_a_resumable_run(tmp_path: Path) -> None:
    """SIGTERM ends with 143 and one line; the run is there, unfinished, and eval does not take it for a finished
    one.
    """
    program = Path(sys.executable).parent / "snnet"
    run = tmp_path / "runs" / "snnet" / "run"
    process = subprocess.Popen(
        [program, "train", "--name", "run", *SHORT],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "seed-10" / "anchor small").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.count("\n") == 1
    assert "--resume" in error
    assert not (run / "finished").exists()
    assert "no finished run" in command("eval", cwd=tmp_path, check=False).stderr


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
    assert kept.losses[:20] == pytest.approx(json.loads(TRACE.read_text()), rel=1e-4)


def test_weights_are_plain_safetensors(whole: Path) -> None:
    """Anybody's safetensors reads them, under the released key scheme."""
    state = load_file(whole / "seed-10" / "least squares" / "weights.safetensors")
    assert state["stitch_layers.0.0.transform.weight"].shape == (16, 8)
    assert state["anchors.2.blocks.3.mlp.fc2.weight"].shape == (48, 96)
