"""The embedded experiment through the command, shortened: its claims, its loss trace, and what cuts it short."""

import json
import signal
from pathlib import Path

import pytest
import torch
from made import LITV2

from litv2.experiment.run import run_seed
from litv2.experiment.settings import ExperimentConfig
from litv2.experiment.two_markers import sample_markers
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import any_file
from paperkit.testing.golden import TRACE, check_losses
from paperkit.testing.runs import check_same_runs

SHORT = ["--seeds", "1", "--alphas", "[0, 0.5]", "--digit_steps", "150", "--timing_pairs", "0", "--marker_test", "1024"]
TINY = ["--seeds", "1", "--alphas", "[0, 0.5]", "--timing_pairs", "0", "--marker_test", "64", "--marker_steps", "60"]
TINY += ["--digit_steps", "60"]


def test_train_then_eval(tmp_path: Path) -> None:
    LITV2.here("train", *SHORT, "--name", "short", cwd=tmp_path)
    run = tmp_path / "runs" / "litv2" / "short"
    metrics = Metrics.read(run / "metrics.json")
    assert [claim.text for claim in metrics.claims if claim.asserted and not claim.held] == []
    assert sum(claim.asserted for claim in metrics.claims) >= 6
    for name in ("config.yaml", "env.json", "figures/two_markers.png", "figures/frequency_maps.png"):
        assert (run / name).stat().st_size > 100
    assert list(run.rglob("events.out.tfevents*"))
    assert "held (asserted)" in LITV2.here("eval", cwd=tmp_path).out
    assert Metrics.read(run / "metrics.json").rows == metrics.rows
    assert LITV2.here("figures", run, cwd=tmp_path).out.count(".png") == 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("tiny")
    LITV2.here("train", *TINY, "--name", "whole", cwd=folder)
    return folder / "runs" / "litv2" / "whole"


def test_loss_trace(tmp_path: Path) -> None:
    """The first 20 losses of four networks are those that were stored: the computation is the same."""
    config = ExperimentConfig(seeds=1, alphas=(0.0, 0.5), marker_steps=20, digit_steps=20, marker_test=64)
    run_seed(0, lambda steps: None, str(tmp_path), config)
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("losses.json")}
    check_losses(found, Path(__file__).parents[1] / "golden" / TRACE)


def test_killed_twice_and_resumed_leaves_the_same_run(whole: Path) -> None:
    folder = whole.parents[2]
    cut = whole.parent / "cut"
    LITV2.start("train", *TINY, "--name", "cut", cwd=folder).kill_when(any_file(cut, "last.ckpt"))
    done = len(list(cut.rglob("weights.safetensors")))
    LITV2.start("train", "--resume", cwd=folder).kill_when(
        lambda: len(list(cut.rglob("weights.safetensors"))) > done and any_file(cut, "last.ckpt")()
    )
    assert not (cut / "finished").exists()
    LITV2.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(whole, cut)


def test_sigterm_leaves_a_resumable_run(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "litv2" / "told"
    words = ["--seeds", "1", "--timing_pairs", "0", "--name", "told"]
    started = LITV2.start("train", *words, cwd=tmp_path)
    ended = started.kill_when(any_file(run, "last.ckpt"), signal.SIGTERM, group=False)
    assert ended.code == 143 and ended.err.splitlines()[-1].startswith("error: interrupted by SIGTERM")
    assert list(run.rglob("last.ckpt")) and not (run / "finished").exists()


def test_diverging_loss_is_named(tmp_path: Path) -> None:
    line = LITV2.child("train", *TINY, "--lr", "1e30", cwd=tmp_path, code=1).line
    assert "the loss is not finite at step" in line


def test_a_folder_that_may_not_be_written_is_named(others_folder: Path) -> None:
    line = LITV2.child("train", "--name", "no", cwd=others_folder, nobody=True, code=1).line
    assert line == "error: cannot make the run folder runs/litv2/no: Permission denied"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "--alphas", "[0, 0.5, 1.5]"], 1, "alpha 1.5 is outside [0, 1]"),
        (["train", "--alphas", "[0.2]"], 1, "must hold 0 and 0.5"),
        (["train", "--seeds", "0"], 1, "seeds 0 is below 1"),
        (["train", "--lr", "much"], 2, "lr"),
        (["eval", "--ckpt", "nowhere"], 1, "no checkpoint at nowhere"),
        (["swim"], 2, "has no verb 'swim'"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    assert message in LITV2.refused(*words, cwd=tmp_path, code=code)
    assert not list(tmp_path.rglob("started"))


def test_verify_of_nothing(tmp_path: Path) -> None:
    assert "no such file" in LITV2.here("verify", "nothing.safetensors", cwd=tmp_path, code=1).out


def test_markers_say_what_the_label_is() -> None:
    """The label follows from the third channel alone, and no single half of the map tells it."""
    grids, labels = sample_markers(4000, torch.Generator().manual_seed(0))
    upper, lower = grids[:, :4, :, 2].sum((1, 2)), grids[:, 4:, :, 2].sum((1, 2))
    assert ((upper.sign() == lower.sign()).long() == labels).double().mean() > 0.97
    assert abs(labels.double().mean() - 0.5) < 0.03
    assert abs((upper.sign() > 0).double().sub(labels.double()).abs().mean() - 0.5) < 0.03
