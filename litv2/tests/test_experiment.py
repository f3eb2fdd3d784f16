"""The embedded experiment through the real command line: shortened, killed and resumed, and on bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from litv2.experiment import run_seed
from litv2.experiment_config import ExperimentConfig
from litv2.two_markers import sample_markers
from paperkit.metrics import Metrics

LITV2 = [str(Path(sys.executable).parent / "litv2")]
SHORT = ["--seeds", "1", "--alphas", "[0, 0.5]", "--digit_steps", "150", "--timing_pairs", "0", "--marker_test", "1024"]
TRACE = Path(__file__).parent / "golden" / "loss_trace.json"


def litv2(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PAPERKIT_RUN": ""}
    environment.pop("PAPERKIT_RUN")
    return subprocess.run([*LITV2, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=550)


def weights(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("weights.safetensors"))}


def test_train_then_eval(tmp_path: Path) -> None:
    done = litv2("train", *SHORT, "--name", "short", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "litv2" / "short"
    metrics = Metrics.read(run / "metrics.json")
    assert [claim.text for claim in metrics.claims if claim.asserted and not claim.held] == []
    assert sum(claim.asserted for claim in metrics.claims) >= 6
    for name in ("config.yaml", "env.json", "figures/two_markers.png", "figures/frequency_profile.png"):
        assert (run / name).stat().st_size > 100
    assert list(run.rglob("events.out.tfevents*"))
    again = litv2("eval", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert Metrics.read(run / "metrics.json").rows == metrics.rows
    assert "held (asserted)" in again.stdout
    drawn = litv2("figures", str(run), cwd=tmp_path)
    assert drawn.returncode == 0 and drawn.stdout.count(".png") == 7


def test_loss_trace(tmp_path: Path) -> None:
    """The first 20 losses of four networks are those that were stored: the computation is the same."""
    config = ExperimentConfig(seeds=1, alphas=(0.0, 0.5), marker_steps=20, digit_steps=20, marker_test=64)
    run_seed(0, lambda steps: None, str(tmp_path), config)
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("losses.json")}
    stored = json.loads(TRACE.read_text())
    assert found.keys() == stored.keys()
    for name, losses in stored.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(losses), rtol=1e-4, atol=1e-5)


TINY = ["--seeds", "1", "--alphas", "[0, 0.5]", "--timing_pairs", "0", "--marker_test", "64"]
TINY += ["--marker_steps", "60", "--digit_steps", "60"]


def kill_after_checkpoint(words: list[str], cwd: Path, run: Path, delay: float) -> None:
    """Start the command, wait for a checkpoint that was not there, then for ``delay`` seconds, then kill -9."""
    before = {path: path.stat().st_mtime for path in run.rglob("last.ckpt")}
    process = subprocess.Popen([*LITV2, *words], cwd=cwd, stdout=subprocess.DEVNULL, start_new_session=True)
    limit = time.monotonic() + 200
    while time.monotonic() < limit and process.poll() is None:
        time.sleep(0.01)
        if any(before.get(path) != path.stat().st_mtime for path in list(run.rglob("last.ckpt")) if path.exists()):
            break
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_twice_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    whole = litv2("train", *TINY, "--name", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "runs" / "litv2" / "cut"
    kill_after_checkpoint(["train", *TINY, "--name", "cut"], tmp_path, run, 0.0)
    assert not (run / "finished").exists()
    kill_after_checkpoint(["train", "--resume"], tmp_path, run, 0.3)
    resumed = litv2("train", "--resume", str(run), cwd=tmp_path)
    if "is finished" not in resumed.stderr:
        assert resumed.returncode == 0, resumed.stderr
    assert weights(run) == weights(tmp_path / "runs" / "litv2" / "whole") and len(weights(run)) == 6


def test_sigterm_leaves_a_resumable_run(tmp_path: Path) -> None:
    options = ["--seeds", "1", "--timing_pairs", "0", "--name", "told"]
    process = subprocess.Popen([*LITV2, "train", *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    run, limit = tmp_path / "runs" / "litv2" / "told", time.monotonic() + 120
    while not list(run.rglob("last.ckpt")) and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and errors.strip().splitlines()[-1].startswith("error: interrupted by SIGTERM")
    assert list(run.rglob("last.ckpt"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "--alphas", "[0, 0.5, 1.5]"], 1, "alpha 1.5 is outside [0, 1]"),
        (["train", "--alphas", "[0.2]"], 1, "must hold 0 and 0.5"),
        (["train", "--seeds", "0"], 1, "seeds 0 is below 1"),
        (["train", "--lr", "much"], 2, "lr"),
        (["train", "--resume"], 1, "no unfinished run"),
        (["eval"], 1, "no finished run"),
        (["eval", "--ckpt", "nowhere"], 1, "no checkpoint at nowhere"),
        (["swim"], 2, "has no verb 'swim'"),
        (["verify", "nothing.safetensors"], 1, ""),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = litv2(*words, cwd=tmp_path)
    assert done.returncode == code
    if message:
        assert message in done.stderr and done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1


def test_diverging_loss_is_named(tmp_path: Path) -> None:
    done = litv2("train", *SHORT, "--lr", "1e30", cwd=tmp_path)
    assert done.returncode == 1 and "the loss is not finite at step" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_markers_say_what_the_label_is() -> None:
    """The label follows from the third channel alone, and no single half of the map tells it."""
    grids, labels = sample_markers(4000, torch.Generator().manual_seed(0))
    upper, lower = grids[:, :4, :, 2].sum((1, 2)), grids[:, 4:, :, 2].sum((1, 2))
    assert ((upper.sign() == lower.sign()).long() == labels).double().mean() > 0.97
    assert abs(labels.double().mean() - 0.5) < 0.03
    assert abs((upper.sign() > 0).double().sub(labels.double()).abs().mean() - 0.5) < 0.03
