"""The embedded experiment through the real command: exact resume after kill -9, stored losses, figures, bad input."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from paperkit.command.cli import main as run_verb
from spt.cli import VERBS
from spt.experiment.digit_tasks import CLASSES, SOURCE_IMAGES, make_task, source_digits, unseen_digits
from spt.experiment.run import first_losses
from spt.experiment.settings import SENSITIVE

SPT = [str(Path(sys.executable).with_name("spt"))]
SHORT = ["--seeds", "2", "--tasks", "[flip,location]", "--steps", "20", "--pretrain_steps", "250"]
SHORT_ARMS = ["--arms", f"[{SENSITIVE},SPT-LoRA,peft AdaLoRA]"]


def spt(*arguments: str, cwd: Path, code: int = 0) -> str:
    """Runs the command; returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*SPT, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def here(
    *arguments: str, cwd: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int = 0
) -> str:
    """The same command inside this process, which spares the imports."""
    monkeypatch.chdir(cwd)
    capfd.readouterr()
    assert run_verb("spt", "", VERBS, list(arguments)) == code
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return out + err


def weights_of(run: Path) -> dict[str, str]:
    """Digest of every weight file of a run."""
    return {
        str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(run.rglob("*.safetensors"))
    }


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    spt("train", "--name", "one", *SHORT, *SHORT_ARMS, cwd=folder)
    return folder / "runs" / "spt" / "one"


def test_data_are_disjoint_and_repeat() -> None:
    source, unseen = source_digits(0)[0], unseen_digits(0)[0]
    assert len(source) == SOURCE_IMAGES and len(unseen) == 897
    for name, classes in CLASSES.items():
        once, again, other = make_task(name, 3), make_task(name, 3), make_task(name, 4)
        assert torch.equal(once.train[0], again.train[0]) and not torch.equal(once.train[0], other.train[0])
        assert (len(once.train[1]), len(once.test[1])) == (250, 647) and int(once.test[1].max()) == classes - 1
    held = make_task("flip", 3, val_images=50)
    assert torch.equal(torch.cat([held.train[0], held.test[0]]), make_task("flip", 3).train[0])


def test_losses_are_those_stored(short_run: Path) -> None:
    """The first 20 steps of one arm; a change of them is a change of the computation."""
    stored = json.loads((Path(__file__).parents[1] / "golden" / "loss_trace.json").read_text())
    for task, losses in stored.items():
        assert first_losses(short_run, 0, task) == pytest.approx(losses, rel=1e-4)


def test_figures_are_drawn_again(short_run: Path) -> None:
    names = {path.name for path in (short_run / "figures").iterdir()}
    assert names == {
        *("accuracy.png", "sensitivity_by_block.png", "sensitivity_by_operation.png", "selections.png"),
        *("accuracy_by_share.png", "budget.png", "concentration.png", "overlap.png"),
    }
    for path in (short_run / "figures").iterdir():
        path.unlink()
    spt("figures", str(short_run), cwd=short_run)
    assert {path.name for path in (short_run / "figures").iterdir()} == names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (short_run / "figures").iterdir())


@pytest.mark.parametrize("moment", ["pre-training", "tuning"])
def test_kill_and_resume_give_the_same_bits(moment: str, short_run: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = tmp_path / "runs" / "spt" / "cut"
    process = subprocess.Popen(
        [*SPT, "train", "--name", "cut", *SHORT, *SHORT_ARMS],
        cwd=tmp_path, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    sign = run / "pretraining.ckpt" if moment == "pre-training" else run / "seed-0" / "flip"
    end = time.monotonic() + 120
    while not sign.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    assert sign.exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "finished").exists()
    if moment == "pre-training":
        assert not (run / "backbone.safetensors").exists()
    spt("train", "--resume", cwd=tmp_path)
    assert weights_of(run) == weights_of(short_run)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--tasks", "[sun]"], 1, "no task 'sun'"),
        (["train", "--arms", "[moon]"], 1, "no arm 'moon'"),
        (["train", "--steps", "0"], 1, "steps 0 must be at least 1"),
        (["train", "--lr", "-1"], 1, "learning rates must be positive"),
        (["train", "--budget", "0", "--steps", "1", "--pretrain_steps", "1"], 1, "budget 0 is smaller than one entry"),
        (["train", "--lr", "1e30", "--steps", "9", "--pretrain_steps", "1", "--seeds", "1"], 1, "the loss is"),
        (["train", "--seeds", "many"], 2, "seeds"),
        (["train", "--resume"], 1, "no unfinished run"),
        (["eval"], 1, "no finished run"),
        (["eval", "--ckpt", "nowhere"], 1, "no checkpoint at nowhere"),
        (["fly"], 2, "no verb 'fly'"),
        (["bench", "--parts", "[moon]"], 1, "no part 'moon'"),
        (["verify", "nothing.safetensors"], 1, "no such file"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch, capfd=capfd, code=code)
    assert words in out
    assert sum(line.startswith("error:") for line in out.splitlines()) <= 1


def test_help_is_quick() -> None:
    start = time.monotonic()
    subprocess.run([*SPT, "--help"], check=True, capture_output=True)
    assert time.monotonic() - start < 2


def test_a_run_in_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    out = spt("train", cwd=tmp_path, code=1)
    assert "cannot make the run folder" in out
