"""The embedded experiment through the command, shortened: its claims, its loss trace, and what cuts it short."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bivit.deployment.packed_file import write_packed
from bivit.deployment.packed_model import pack
from bivit.experiment import settings as names
from bivit.experiment.digit_transformer import LONG, SHORT, built, config_of, costs, digit_transformer
from bivit.experiment.rows import measure_rows
from bivit.experiment.run import run_seed, seed_folder, split_digits, trained
from bivit.experiment.settings import A1, A32, STUDENTS, TEACHER, ExperimentConfig, SeedResult, student
from bivit.experiment.summary import long_claims, row_claims, student_claims
from bivit.figures.active_sets import BIT_START, BOOL, FITTED, ONES, OPTIMAL, SAB
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import Command, any_file
from paperkit.testing.golden import TRACE, check_losses
from paperkit.testing.runs import check_same_runs

BIVIT = Command("bivit", "bivit.cli:main", preload=("bivit.experiment.run",))
SHORTENED = ["--seeds", "1", "--teacher_epochs", "12", "--student_epochs", "4"]
SHORTENED += ["--students", json.dumps([student(names.SAB_PWS, A32), student(names.NAIVE, A32)])]
TINY = ["--seeds", "1", "--teacher_epochs", "3", "--student_epochs", "4", "--batch_size", "40"]
TINY += ["--students", json.dumps([student(names.CLB, A32), student(names.BIT, A1)])]


def test_train_then_eval(tmp_path: Path) -> None:
    BIVIT.here("train", *SHORTENED, "--name", "short", cwd=tmp_path)
    run = tmp_path / "runs" / "bivit" / "short"
    metrics = Metrics.read(run / "metrics.json")
    assert [claim.text for claim in metrics.claims if claim.asserted and not claim.held] == []
    assert sum(claim.asserted for claim in metrics.claims) >= 3
    for name in ("config.yaml", "env.json", "figures/approximation.png", "figures/attention_row.png"):
        assert (run / name).stat().st_size > 100
    assert list(run.rglob("events.out.tfevents*"))
    assert "held (asserted)" in BIVIT.here("eval", cwd=tmp_path).out
    assert Metrics.read(run / "metrics.json").rows == metrics.rows
    assert BIVIT.here("figures", run, cwd=tmp_path).out.count(".png") == 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("tiny")
    BIVIT.here("train", *TINY, "--name", "whole", cwd=folder)
    return folder / "runs" / "bivit" / "whole"


def test_killed_twice_and_resumed_leaves_the_same_run(whole: Path) -> None:
    """Once in the first stage of CLB, once in a student whose quantisers took their start from its first batch."""
    folder, cut = whole.parents[2], whole.parent / "cut"
    first = any_file(cut / "seed-1" / f"{student(names.CLB, A32)}, stage 1", "last.ckpt")
    BIVIT.start("train", *TINY, "--name", "cut", cwd=folder).kill_when(first)
    second = any_file(cut / "seed-1" / student(names.BIT, A1), "last.ckpt")
    BIVIT.start("train", "--resume", cwd=folder).kill_when(second)
    assert not (cut / "finished").exists()
    BIVIT.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(whole, cut)


def test_sigterm_leaves_a_resumable_run(whole: Path) -> None:
    folder, run = whole.parents[2], whole.parent / "told"
    started = BIVIT.start("train", *TINY, "--name", "told", cwd=folder)
    ended = started.kill_when(any_file(run, "last.ckpt"), signal.SIGTERM, group=False)
    assert ended.code == 143 and ended.err.splitlines()[-1].startswith("error: interrupted by SIGTERM")
    assert list(run.rglob("last.ckpt")) and not (run / "finished").exists()
    BIVIT.here("train", "--resume", "told", cwd=folder)
    check_same_runs(whole, run)


TRACED = (
    *(student(form, A32) for form in (names.SAB_PWS, names.MEAN, names.BIBERT)),
    *(student(form, A1) for form in (names.CLB, names.NAIVE, names.REACTNET)),
)


@pytest.fixture
def float64() -> Iterator[None]:
    """In float32 the order of a sum, another on each processor, turns a sign now and then."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_loss_trace(tmp_path: Path, float64: None) -> None:
    """The first 20 losses of every stage are those that were stored: the computation is the same."""
    config = ExperimentConfig(seeds=1, teacher_epochs=1, student_epochs=2, students=TRACED)
    run_seed(1, lambda steps: None, str(tmp_path), config)
    found = {path.parent.name: json.loads(path.read_text())[:20] for path in tmp_path.rglob("losses.json")}
    assert all(len(losses) == 20 for losses in found.values()) and len(found) == 1 + len(TRACED) + 1
    check_losses(found, Path(__file__).parents[1] / "golden" / TRACE)


def test_every_student_can_be_built_and_is_as_binary_as_its_name_says(whole: Path) -> None:
    folder, (_, _, (images, _)) = seed_folder(whole, 1), split_digits(1)
    assert len(set(STUDENTS)) == len(STUDENTS)
    for name in (*STUDENTS, *names.LONG_STUDENTS):
        assert config_of(name).mlp == {"A1": "w1a1", "32": "w1a32", "LP": "float"}[name[-2:]]
    for name in (TEACHER, *names.LONG_STUDENTS):
        assert built(name, LONG)(images[:2]).shape == (2, 10)
    network = trained(SHORT, student(names.CLB, A32), folder)
    weight = network.blocks[1].attn.qkv.binary_weight()
    assert all(len(channel.abs().unique()) == 1 for channel in weight)
    assert trained(SHORT, TEACHER, folder)(images[:2]).shape == (2, 10)


def test_bytes_of_the_table_are_those_of_the_packed_file(whole: Path, tmp_path: Path) -> None:
    """A trained student on bits: the same logits, and as many bytes as the table says, but for the file's header."""
    name, (images, _) = student(names.CLB, A32), split_digits(1)[2]
    network = trained(SHORT, name, seed_folder(whole, 1))
    packed = pack(network)
    with torch.no_grad():
        torch.testing.assert_close(packed(images), network(images), rtol=1e-4, atol=1e-4)
    write_packed(tmp_path / "packed.safetensors", packed, "vit_tiny_patch16_224", config_of(name))
    told, written = costs([name])[name][1], (tmp_path / "packed.safetensors").stat().st_size
    assert told < written < told + 10_000


def test_rows_are_measured_by_their_definition() -> None:
    """On the rows of an untrained teacher, against sums that are written out."""
    torch.manual_seed(0)
    teacher = digit_transformer(SHORT).eval()
    images = split_digits(1)[2][0][:4]
    found = measure_rows(teacher, images)
    assert found["active"][ONES] == 1 and found["raw_errors"][ONES] > found["raw_errors"][BIT_START]
    seen: list[torch.Tensor] = []
    for block in teacher.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        teacher(images)
    rows = torch.cat([scores.flatten(0, -2) for scores in seen]).double()
    errors, active = [], []
    for row in rows:
        b = (row >= row.max() / 4).double()
        errors.append(float((row - (row * b).sum() / b.sum() * b).square().sum() / row.square().sum()))
        active.append(float(b.mean()))
    assert found["scaled_errors"][SAB] == pytest.approx(sum(errors) / len(errors), rel=1e-6)
    assert found["active"][SAB] == pytest.approx(sum(active) / len(active), rel=1e-6)
    assert found["scaled_errors"][OPTIMAL] <= found["scaled_errors"][SAB]
    assert 0 <= found["active"][BOOL] <= 1 and FITTED in found["active"]


def test_diverging_loss_is_named(tmp_path: Path) -> None:
    line = BIVIT.child("train", *TINY, "--lr", "1e30", cwd=tmp_path, code=1).line
    assert "the loss is not finite at step" in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seeds", "0"], 1, "seeds 0 is below 1"),
        (["--long_seeds", "3"], 1, "long_seeds 3 is not from 0 to the number of seeds, 2"),
        (["--students", '["magic"]'], 1, "no student 'magic'; there are six, all, "),
        (["--students", "[]"], 1, "there is no student: name one at least"),
        (["--student_epochs", "1"], 1, "student_epochs 1 is below 2"),
        (["--batch_size", "1300"], 1, "batch_size 1300 is above the 1200 images"),
        (["--lr", "much"], 2, "lr"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    assert message in BIVIT.refused("train", *words, cwd=tmp_path, code=code)
    assert not list(tmp_path.rglob("started"))


def test_claims_can_fail() -> None:
    """A result in which naive attention wins, the mean scale is better than PWS, and a student beats its teacher."""
    errors = {OPTIMAL: 0.2, SAB: 0.3, BOOL: 0.2, ONES: 0.1, BIT_START: 0.1}
    accuracies = {TEACHER: 80.0, student(names.NAIVE, A32): 90.0, student(names.NAIVE, A1): 70.0}
    accuracies |= {student(names.SAB_PWS, A32): 80.0, student(names.SAB_PWS, A1): 79.0}
    accuracies |= {student(names.MEAN, A32): 81.0, student(names.BIBERT, A32): 82.0}
    long = dict.fromkeys(names.LONG_STUDENTS, 50.0)
    results = [SeedResult(seed, errors, errors, errors, 0.5, 0.8, accuracies, {}, long) for seed in range(5)]
    claims = [*row_claims(results), *student_claims(results)]
    asserted = [claim for claim in claims if claim.asserted]
    assert len(asserted) == 6 and not any(claim.held for claim in asserted)
    for seeds, asserted_of in {1: 1, 2: 2, 3: 3, 5: 4}.items():  # a mean of pairs needs seeds, by its spread
        assert sum(claim.asserted for claim in student_claims(results[:seeds])) == asserted_of
    assert not any(claim.held for claim in long_claims(results))
