"""The embedded experiment through the command, shortened: its claims, its loss trace, and what cuts it short."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from paperkit.results.metrics import Metrics
from paperkit.testing.commands import Command, any_file
from paperkit.testing.golden import TRACE, check_losses
from paperkit.testing.runs import check_same_runs
from ptq4dm.experiment import settings as names
from ptq4dm.experiment.calibrated import load_calibrated
from ptq4dm.experiment.digits import pixel_frechet, split_digits
from ptq4dm.experiment.network import digit_unet, train_network
from ptq4dm.experiment.run import arm_of, bits_of, seed_folder
from ptq4dm.experiment.sampler import new_scheduler, predictor, start_noise, walk
from ptq4dm.experiment.settings import (
    ETA0_ARMS,
    ETA0_STEPS,
    ETA1_ARMS,
    FLOAT,
    MIXED,
    MIXED_3,
    OFFICIAL,
    QUANTISED,
    REVERSED_3,
    SIGNED,
    Draw,
    ExperimentConfig,
    SeedResult,
)
from ptq4dm.experiment.summary import correction_claims, mixed_claims, noise_claims

PTQ4DM = Command("ptq4dm", "ptq4dm.cli:main", preload=("ptq4dm.experiment.run",))
SHORT = ["--seeds", "1", "--draws", "1", "--images", "4", "--steps", "110", "--batch_size", "16", "--pairs", "16"]
SHORT += ["--records", "64", "--tinted", "true"]
FIGURES = ("error_scatter", "statistics", "residuals", "snr", "sigmas", "samples", "paths", "quality")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shortened run of one network on tinted digits, which nobody interrupts."""
    folder = tmp_path_factory.mktemp("short")
    PTQ4DM.here("train", *SHORT, "--name", "short", cwd=folder)
    return folder / "runs" / "ptq4dm" / "short"


def test_train_then_eval(short: Path) -> None:
    """Part A and the lower noise error are asserted of any network; the rest needs a trained one and more draws."""
    metrics, folder = Metrics.read(short / "metrics.json"), short.parents[2]
    assert [claim.text for claim in metrics.claims if claim.asserted and not claim.held] == []
    assert sum(claim.asserted for claim in metrics.claims) >= 3
    for name in ("config.yaml", "env.json", *(f"figures/{name}.png" for name in FIGURES)):
        assert (short / name).stat().st_size > 100
    assert list(short.rglob("events.out.tfevents*"))
    assert "held (asserted)" in PTQ4DM.here("eval", cwd=folder).out
    assert Metrics.read(short / "metrics.json").rows == metrics.rows
    assert PTQ4DM.here("figures", short, cwd=folder).out.count(".png") == len(FIGURES)


def test_arms_share_weights_and_noise(short: Path) -> None:
    """One set of 4-bit weights; bits reversed cost the same; without correction an arm is plain DDIM."""
    config = ExperimentConfig(tinted=True)
    parts = load_calibrated(seed_folder(short, 1), config)
    weights = [
        {key: value for key, value in parts.quantised[name].state_dict().items() if "act_quantizer" not in key}
        for name in ("w4a8", "w4a4", "w4a3")
    ]
    for other in weights[1:]:
        assert other.keys() == weights[0].keys() and all(torch.equal(other[key], weights[0][key]) for key in other)
    assert bits_of(MIXED_3, parts).activation_bits == bits_of(REVERSED_3, parts).activation_bits[::-1]
    start = start_noise(2, 3, 5)
    same = [list(walk(*arm_of(FLOAT, parts, ETA0_STEPS), start))[-1][3] for _ in range(2)]
    assert torch.equal(*same)
    with torch.no_grad():
        x = start
        for t in new_scheduler(ETA0_STEPS).timesteps.tolist():
            x = new_scheduler(ETA0_STEPS).step(parts.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(same[0], x)
    quantised = list(walk(*arm_of(QUANTISED, parts, ETA0_STEPS), start))[-1][3]
    assert not torch.equal(quantised, same[0])
    for arm in MIXED:
        assert set(bits_of(arm, parts).timesteps) == set(new_scheduler(ETA0_STEPS).timesteps.tolist())


def test_cut_short_twice_and_resumed_leaves_the_same_run(short: Path) -> None:
    """Killed while the network trains, and told to end while its noise is measured."""
    folder, cut = short.parents[2], short.parent / "cut"
    PTQ4DM.start("train", *SHORT, "--name", "cut", cwd=folder).kill_when(any_file(cut, "last.ckpt"))
    assert not (cut / "seed-1" / "weights.safetensors").exists()
    resumed = PTQ4DM.start("train", "--resume", cwd=folder)
    ended = resumed.kill_when(any_file(cut / "seed-1", "statistics-*.safetensors"), signal.SIGTERM, group=False)
    assert ended.code == 143 and ended.err.splitlines()[-1].startswith("error: interrupted by SIGTERM")
    assert not (cut / "finished").exists()
    PTQ4DM.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(short, cut)


@pytest.fixture
def float64() -> Iterator[None]:
    """In float32 the order of a sum is another on each processor, and Adam keeps the rounding of small gradients."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_loss_trace(tmp_path: Path, float64: None) -> None:
    """The first 20 losses are those that were stored: the computation is the same."""
    train_network(1, tmp_path, ExperimentConfig(steps=20, batch_size=16), lambda steps: None)
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert len(losses) == 20
    check_losses(losses, Path(__file__).parents[1] / "golden" / TRACE)


def test_the_network_is_the_one_of_the_table() -> None:
    assert sum(p.numel() for p in digit_unet().parameters()) == 176_849
    assert predictor(digit_unet(3))(torch.zeros(1, 3, 8, 8), 1).shape == (1, 3, 8, 8)


def test_tinted_digits_are_the_same_scans_in_one_colour_each() -> None:
    grey, tinted = (split_digits(kind)[0] for kind in (False, True))
    shares = (tinted + 1) / (grey + 1).clamp(min=1e-9)
    for share, scan in zip(shares[:5], grey[:5], strict=True):
        for channel in share[:, scan[0] > -1]:
            assert channel.std() < 1e-5 and 0.3 <= channel.mean() <= 1
    assert tinted.min() == -1 and tinted.max() <= 1


def test_frechet_distance_of_known_gaussians() -> None:
    """A shift adds its square; twice the spread adds the trace of the covariance; equal sets have none."""
    images = torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    assert pixel_frechet(images, images) == pytest.approx(0, abs=1e-9)
    assert pixel_frechet(images + 0.5, images) == pytest.approx(4 * 0.25, rel=1e-6)
    spread = images.flatten(1).T.cov().trace().item()
    assert pixel_frechet(2 * (images - images.mean(0)), images - images.mean(0)) == pytest.approx(spread, rel=1e-4)


def test_diverging_loss_is_named(tmp_path: Path) -> None:
    line = PTQ4DM.refused("train", *SHORT, "--lr", "1e30", cwd=tmp_path)
    assert "the loss is not finite at step" in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seeds", "0"], 1, "seeds 0 is below 1"),
        (["--draws", "0"], 1, "draws 0 is below 1"),
        (["--images", "1"], 1, "images 1 is below 2"),
        (["--pairs", "1"], 1, "pairs 1 is below 2"),
        (["--batch_size", "1300"], 1, "batch_size 1300 is above the 1200 images"),
        (["--lr", "much"], 2, "lr"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    assert message in PTQ4DM.refused("train", *words, cwd=tmp_path, code=code)
    assert not list(tmp_path.rglob("started"))


def made_result(better: bool) -> SeedResult:
    """A network for which every order comes out as claimed, or none does."""
    good, bad = (1.0, 2.0) if better else (2.0, 1.0)
    ours = {SIGNED, OFFICIAL, MIXED_3, names.MIXED_4, names.SCHEDULED}
    numbers = {arm: good if arm in ours else bad for arm in (*ETA0_ARMS, *ETA1_ARMS)}
    draw = Draw(numbers, numbers, numbers, {})
    errors = {arm: [numbers[arm]] * ETA0_STEPS for arm in (QUANTISED, OFFICIAL, SIGNED)}
    bops = {arm: [numbers[arm]] * 2 for arm in ETA0_ARMS}
    return SeedResult(1, errors, [0.0] * ETA0_STEPS, {}, {}, bops, 0, [draw], [draw])


def test_claims_can_fail() -> None:
    for better in (True, False):
        results = [made_result(better)] * 8
        claims = [*noise_claims(results), *correction_claims(results), *mixed_claims(results)]
        asserted = [claim for claim in claims if claim.asserted]
        assert len(asserted) >= 5 and all(claim.held == better for claim in asserted)
