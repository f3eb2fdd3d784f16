"""The embedded experiment cut short: kill -9, SIGTERM, a diverging loss, a full disk, a folder that is read-only."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from made import command, here

from litv2.experiment.run import run_seed
from litv2.experiment.settings import ExperimentConfig

LITV2 = [str(Path(sys.executable).parent / "litv2")]
TINY = ["--seeds", "1", "--alphas", "[0, 0.5]", "--timing_pairs", "0", "--marker_test", "64"]
TINY += ["--marker_steps", "60", "--digit_steps", "60"]


def weights(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("weights.safetensors"))}


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
    whole = tmp_path / "whole"
    config = ExperimentConfig(seeds=1, alphas=(0.0, 0.5), marker_steps=60, digit_steps=60, marker_test=64)
    run_seed(0, lambda steps: None, str(whole), config)
    run = tmp_path / "runs" / "litv2" / "cut"
    kill_after_checkpoint(["train", *TINY, "--name", "cut"], tmp_path, run, 0.0)
    assert not (run / "finished").exists()
    kill_after_checkpoint(["train", "--resume"], tmp_path, run, 0.3)
    assert not (run / "finished").exists()
    command("train", "--resume", run, cwd=tmp_path)
    assert weights(run) == weights(whole) and len(weights(run)) == 6


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


def test_diverging_loss_is_named(tmp_path: Path) -> None:
    done = command("train", *TINY, "--lr", "1e30", cwd=tmp_path, code=1)
    assert "the loss is not finite at step" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_full_disk_is_named(tmp_path: Path) -> None:
    """No file may grow beyond 50 kB, less than a checkpoint: a write notices it as it notices a full disk."""
    limit = 50_000
    done = command(
        "train", *TINY, cwd=tmp_path, code=1,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert "cannot write" in done.stderr and "last.ckpt: File too large" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.rglob("*.tmp-*"))


def test_a_folder_that_may_not_be_written_is_named() -> None:
    """In a child process that is nobody, since root may write everywhere."""
    import paperkit.command.seeds  # noqa: F401  (what the command imports; nobody may not read every place)

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        os.chmod(folder, 0o555)
        child = os.fork()
        if child == 0:
            code = 99
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                sys.stdout = sys.stderr = log
                code = here("train", "--name", "no", "--root", f"{folder}/runs")
                log.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log.seek(0)
        assert (code, log.read()) == (
            1, f"error: cannot make the run folder {folder}/runs/litv2/no: Permission denied\n"
        )  # fmt: skip
