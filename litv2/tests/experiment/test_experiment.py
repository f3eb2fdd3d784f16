"""The embedded experiment through the real command line, shortened, and bad input of every verb."""

import json
from pathlib import Path

import pytest
import torch
from made import command, here, one_line

from litv2.experiment.run import run_seed
from litv2.experiment.settings import ExperimentConfig
from litv2.experiment.two_markers import sample_markers
from paperkit.results.metrics import Metrics

SHORT = ["--seeds", "1", "--alphas", "[0, 0.5]", "--digit_steps", "150", "--timing_pairs", "0", "--marker_test", "1024"]
TRACE = Path(__file__).parents[1] / "golden" / "loss_trace.json"


def test_train_then_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command("train", *SHORT, "--name", "short", cwd=tmp_path)
    run = tmp_path / "runs" / "litv2" / "short"
    metrics = Metrics.read(run / "metrics.json")
    assert [claim.text for claim in metrics.claims if claim.asserted and not claim.held] == []
    assert sum(claim.asserted for claim in metrics.claims) >= 6
    for name in ("config.yaml", "env.json", "figures/two_markers.png", "figures/frequency_maps.png"):
        assert (run / name).stat().st_size > 100
    assert list(run.rglob("events.out.tfevents*"))
    monkeypatch.chdir(tmp_path)
    assert here("eval") == 0
    again = capsys.readouterr().out
    assert Metrics.read(run / "metrics.json").rows == metrics.rows
    assert "held (asserted)" in again
    assert here("figures", run) == 0 and capsys.readouterr().out.count(".png") == 9


def test_loss_trace(tmp_path: Path) -> None:
    """The first 20 losses of four networks are those that were stored: the computation is the same."""
    config = ExperimentConfig(seeds=1, alphas=(0.0, 0.5), marker_steps=20, digit_steps=20, marker_test=64)
    run_seed(0, lambda steps: None, str(tmp_path), config)
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("losses.json")}
    stored = json.loads(TRACE.read_text())
    assert found.keys() == stored.keys()
    for name, losses in stored.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(losses), rtol=1e-4, atol=1e-5)


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
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert here(*words) == code
    assert message in one_line(capsys)
    assert not list(tmp_path.rglob("finished"))


def test_verify_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("verify", tmp_path / "nothing.safetensors") == 1
    assert "no such file" in capsys.readouterr().out


def test_markers_say_what_the_label_is() -> None:
    """The label follows from the third channel alone, and no single half of the map tells it."""
    grids, labels = sample_markers(4000, torch.Generator().manual_seed(0))
    upper, lower = grids[:, :4, :, 2].sum((1, 2)), grids[:, 4:, :, 2].sum((1, 2))
    assert ((upper.sign() == lower.sign()).long() == labels).double().mean() > 0.97
    assert abs(labels.double().mean() - 0.5) < 0.03
    assert abs((upper.sign() > 0).double().sub(labels.double()).abs().mean() - 0.5) < 0.03
