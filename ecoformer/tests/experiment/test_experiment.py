"""The embedded experiment through the command, shortened: its claims, its loss trace, and what cuts it short."""

import json
import signal
from pathlib import Path

import pytest
import torch

from ecoformer.experiment import settings as names
from ecoformer.experiment.cluster_majority import sample_majority
from ecoformer.experiment.patch_tokens import auc, distance_shares, label_error
from ecoformer.experiment.run import run_seed
from ecoformer.experiment.settings import ExperimentConfig
from ecoformer.experiment.summary import digit_claims, majority_claims
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import Command, any_file
from paperkit.testing.golden import TRACE, check_losses
from paperkit.testing.runs import check_same_runs

ECOFORMER = Command("ecoformer", "ecoformer.cli:main", preload=("ecoformer.experiment.run",))
SHORT = ["--seeds", "1", "--digit_epochs", "1", "--majority_steps", "300", "--sweep", "false"]
SHORT += ["--majority_arms", json.dumps([names.SHARED, names.ECO, names.SIGN]), "--majority_test", "1000"]
TINY = ["--seeds", "1", "--digit_epochs", "4", "--majority_steps", "60", "--sweep", "false", "--majority_test", "64"]
TINY += ["--fit_images", "2", "--test_images", "2", "--fit_iterations", "3", "--batch_size", "32"]
TINY += ["--majority_arms", json.dumps([names.ECO, names.TRAINED_POWER])]


def test_train_then_eval(tmp_path: Path) -> None:
    ECOFORMER.here("train", *SHORT, "--name", "short", cwd=tmp_path)
    run = tmp_path / "runs" / "ecoformer" / "short"
    metrics = Metrics.read(run / "metrics.json")
    assert [claim.text for claim in metrics.claims if claim.asserted and not claim.held] == []
    assert sum(claim.asserted for claim in metrics.claims) >= 7
    for name in ("config.yaml", "env.json", "figures/similarity.png", "figures/attention_maps.png"):
        assert (run / name).stat().st_size > 100
    assert list(run.rglob("events.out.tfevents*"))
    assert "held (asserted)" in ECOFORMER.here("eval", cwd=tmp_path).out
    assert Metrics.read(run / "metrics.json").rows == metrics.rows
    assert ECOFORMER.here("figures", run, cwd=tmp_path).out.count(".png") == 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("tiny")
    ECOFORMER.here("train", *TINY, "--name", "whole", cwd=folder)
    return folder / "runs" / "ecoformer" / "whole"


def test_killed_twice_and_resumed_leaves_the_same_run(whole: Path) -> None:
    """Once in part B, once in part C, between two fits of a hash."""
    folder, cut = whole.parents[2], whole.parent / "cut"
    ECOFORMER.start("train", *TINY, "--name", "cut", cwd=folder).kill_when(any_file(cut, "last.ckpt"))
    second = any_file(cut / "seed-0" / f"majority {names.ECO}", "last.ckpt")
    ECOFORMER.start("train", "--resume", cwd=folder).kill_when(second)
    assert not (cut / "finished").exists()
    ECOFORMER.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(whole, cut)


def test_sigterm_leaves_a_resumable_run(whole: Path) -> None:
    folder, run = whole.parents[2], whole.parent / "told"
    started = ECOFORMER.start("train", *TINY, "--name", "told", cwd=folder)
    ended = started.kill_when(any_file(run, "last.ckpt"), signal.SIGTERM, group=False)
    assert ended.code == 143 and ended.err.splitlines()[-1].startswith("error: interrupted by SIGTERM")
    assert list(run.rglob("last.ckpt")) and not (run / "finished").exists()
    ECOFORMER.here("train", "--resume", "told", cwd=folder)
    check_same_runs(whole, run)


def test_loss_trace(tmp_path: Path) -> None:
    """The first 20 losses of six networks are those that were stored: the computation is the same."""
    config = ExperimentConfig(
        seeds=1,
        digit_epochs=1,
        majority_steps=20,
        majority_arms=(names.SHARED, names.ECO, names.SIGN, names.TRAINED_POWER),
        majority_test=64,
        batch_size=60,
        fit_images=2,
        test_images=2,
        fit_iterations=10,
        sweep=False,
    )
    run_seed(0, lambda steps: None, str(tmp_path), config)
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("losses.json")}
    assert all(len(losses) == 20 for losses in found.values()) and len(found) == 6
    check_losses(found, Path(__file__).parents[1] / "golden" / TRACE)


def test_diverging_loss_is_named(tmp_path: Path) -> None:
    line = ECOFORMER.child("train", *TINY, "--digit_lr", "1e30", cwd=tmp_path, code=1).line
    assert "the loss is not finite at step" in line or "query-key vectors are NaN" in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seeds", "0"], 1, "seeds 0 is below 1"),
        (["--majority_seeds", "6"], 1, "majority_seeds 6 is not from 0 to the number of seeds, 5"),
        (["--digit_arms", '["magic"]'], 1, "no arm 'magic' in part digits; there are all, "),
        (["--majority_arms", "[]"], 1, "a part has no arm"),
        (["--fit_images", "1700"], 1, "1700 and 200 images are more than the 1797"),
        (["--batch_size", "1300"], 1, "batch_size 1300 is above the 1200 images"),
        (["--digit_lr", "much"], 2, "digit_lr"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    assert message in ECOFORMER.refused("train", *words, cwd=tmp_path, code=code)
    assert not list(tmp_path.rglob("started"))


def test_codes_are_measured_by_their_products() -> None:
    """Two tokens alike and two opposite: products 4 and -4 against labels that say so, and that say the contrary."""
    codes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [-1, -1, -1, -1]])[None, None]
    labels = torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]])[None, None]
    assert label_error(codes, labels) == 0 and auc(codes, labels) == 100
    assert label_error(codes, -labels) == 4 and auc(codes, -labels) == 0
    assert auc(torch.ones_like(codes), labels) == 50
    shares = distance_shares(codes, labels)
    assert shares["similar"] == [1, 0, 0, 0, 0] and shares["dissimilar"] == [0, 0, 0, 0, 1]


def test_majority_is_told_by_the_cluster_alone() -> None:
    """Signs of the first token's own cluster tell the label, those of all tokens far less; nothing else does."""
    tokens, labels = sample_majority(4000, torch.Generator().manual_seed(0))
    places, values, wanted = tokens[..., :-1], tokens[..., -1], 2.0 * labels - 1
    own = (places[:, :1] * places).sum(-1) > 8  # of 16: |x| is 4
    cluster, all_of_them = ((values * own).sum(1) * wanted > 0), (values.sum(1) * wanted > 0)
    assert cluster.double().mean() > 0.93 and all_of_them.double().mean() < 0.7
    assert abs(labels.double().mean() - 0.5) < 0.03 and (values[:, 0] == 0).all()


def test_claims_can_fail() -> None:
    """A result in which EcoFormer loses 3 points and softmax falls behind a binary form."""
    from ecoformer.experiment.settings import SeedResult

    energies = {
        "attention at 16 tokens": {names.SHARED: 1.0, names.ECO: 2.0},
        "attention at 3136 tokens": {names.SHARED: 9.0, names.ECO: 1.0},
        "whole network at 3136 tokens": {names.SHARED: 9.0, names.ECO: 2.0},
        "PVTv2-B0 at 224 px": {"EcoFormer": 9.0, "MSA": 10.0, "SRA": 9.0},
    }
    digits, majority = {names.SHARED: 95.0, names.ECO: 92.0}, {names.SHARED: 80.0, names.ECO: 81.0, names.SIGN: 59.0}
    results = [SeedResult(seed, {}, {}, {}, {}, digits=digits, majority=majority) for seed in range(5)]
    claims = [*digit_claims(results, energies), *majority_claims(results)]
    asserted = [claim for claim in claims if claim.asserted]
    assert len(asserted) == 4 and not any(claim.held for claim in asserted)
    assert not digit_claims(results[:1], energies)[0].asserted  # one seed carries no claim about a mean of five
