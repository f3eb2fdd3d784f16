"""The embedded experiment through the command, shortened: its claims, its loss trace, and what cuts it short."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made import TINY, focusformer

from focusformer.experiment import settings as names
from focusformer.experiment.choosing import SPACE, Chooser, accuracy_and_loss, budgets, reachable
from focusformer.experiment.digit_images import split_digits
from focusformer.experiment.run import train_alone
from focusformer.experiment.settings import (
    ARMS,
    BUDGETS,
    FOCUS,
    FURTHER,
    UNIFORM,
    WINDOW,
    ExperimentConfig,
    Found,
    SeedResult,
)
from focusformer.experiment.summary import asserted_claims, reached_by, reported_claims
from focusformer.experiment.supernets import Log, new_strategy, new_supernet, one_step, train_supernet
from focusformer.method.architecture import Architecture
from focusformer.method.cost import macs
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import any_file
from paperkit.testing.golden import TRACE, check_losses
from paperkit.testing.runs import check_same_runs
from paperkit.testing.verbs import steady

WORDS = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("tiny")
    focusformer.here("train", *WORDS, "--name", "whole", cwd=folder)
    return folder / "runs" / "focusformer" / "whole"


def test_train_then_eval(whole: Path) -> None:
    folder, metrics = whole.parents[2], Metrics.read(whole / "metrics.json")
    assert [claim.text for claim in metrics.claims if claim.asserted and not claim.held] == []
    assert sum(claim.asserted for claim in metrics.claims) == 2  # one seed carries no claim about a mean
    for name in ("config.yaml", "env.json", "figures/policy.png", "figures/efficiency.png"):
        assert (whole / name).stat().st_size > 100
    assert list(whole.rglob("events.out.tfevents*"))
    output = folder / "again"
    assert "held (asserted)" in focusformer.here("eval", "--ckpt", whole, "--output", output, cwd=folder).out
    assert steady(Metrics.read(output / "metrics.json")) == steady(metrics)
    assert focusformer.here("figures", whole, cwd=folder).out.count(".png") == 7


def test_what_each_arm_chose_fits_its_budget_and_was_paid_for(whole: Path) -> None:
    """Costs are counted again from the text of each architecture, evaluations and draws from what the arms are."""
    metrics = Metrics.read(whole / "metrics.json")
    for arm, found in metrics.extra["architectures"][0].items():
        for text, budget in zip(found, metrics.extra["budgets"], strict=True):
            assert (text == "") == (arm in (names.U1, names.FURTHER1))
            if text:
                assert WINDOW * budget <= macs(SPACE.sizes, Architecture.parse(text)) <= budget
    counts = {arm: metrics.row(arm, "evaluations").mean for arm in ARMS}
    searched = BUDGETS * TINY["evaluations"]
    assert counts[names.F1] == BUDGETS and counts[names.U30] == counts[names.FURTHER30] == 30 * BUDGETS
    assert counts[names.RANDOM] == counts[names.EVOLUTION] == searched and counts[names.F30] <= 30 * BUDGETS
    draws = {arm: metrics.row(arm, "draws").mean for arm in ARMS}
    assert draws[names.F1] == BUDGETS and draws[names.F30] == 30 * BUDGETS
    assert draws[names.U30] > 3 * counts[names.U30]  # most uniform draws fit no budget


def test_killed_twice_and_resumed_leaves_the_same_run(whole: Path) -> None:
    """Once while the sampler learns, once in the supernet with further steps."""
    folder, cut = whole.parents[2], whole.parent / "cut"
    first = any_file(cut / "seed-1" / FOCUS, "last.ckpt")
    focusformer.start("train", *WORDS, "--name", "cut", cwd=folder).kill_when(first)
    second = any_file(cut / "seed-1" / FURTHER, "last.ckpt")
    focusformer.start("train", "--resume", cwd=folder).kill_when(second)
    assert not (cut / "finished").exists()
    focusformer.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(whole, cut)


def test_sigterm_leaves_a_resumable_run(whole: Path) -> None:
    folder, run = whole.parents[2], whole.parent / "told"
    started = focusformer.start("train", *WORDS, "--name", "told", cwd=folder)
    ended = started.kill_when(any_file(run / "seed-1" / FOCUS, "last.ckpt"), signal.SIGTERM, group=False)
    assert ended.code == 143 and ended.err.splitlines()[-1].startswith("error: interrupted by SIGTERM")
    assert list(run.rglob("last.ckpt")) and not (run / "finished").exists()
    focusformer.here("train", "--resume", "told", cwd=folder)
    check_same_runs(whole, run)


@pytest.fixture
def float64() -> Iterator[None]:
    """In float32 the order of a sum, another on each processor, draws another architecture now and then."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_loss_trace(tmp_path: Path, float64: None) -> None:
    """The first 20 losses of every stage are those that were stored: the computation is the same."""
    config = ExperimentConfig(seeds=1, steps=30, alone=1, alone_steps=20)
    digits, reach = split_digits(1), reachable()
    for name in (UNIFORM, FOCUS, FURTHER):
        train_supernet(name, digits, reach, tmp_path / name, config, lambda steps: None)
    train_alone(0, digits, tmp_path, config, lambda steps: None)
    found = {path.parent.name: json.loads(path.read_text())[:20] for path in tmp_path.rglob("losses.json")}
    assert len(found) == 4 and all(len(losses) == 20 for losses in found.values())
    assert found[UNIFORM][:6] == found[FOCUS][:6] and found[UNIFORM] != found[FOCUS]  # until its samples are trained
    check_losses(found, Path(__file__).parents[1] / "golden" / TRACE)


def test_images_of_the_parts_are_apart() -> None:
    """Rewards see held-out images only, one batch for all architectures of an update."""
    digits = split_digits(1)
    parts = [{image.numpy().tobytes() for image in part[0]} for part in (digits.train, digits.held_out, digits.test)]
    assert [len(part[1]) for part in (digits.train, digits.held_out, digits.test)] == [900, 300, 597]
    assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]
    rewarded = digits.reward_batch(8, 100)
    assert {image.numpy().tobytes() for image in rewarded[0]} <= parts[1]
    assert torch.equal(rewarded[0], digits.reward_batch(8, 100)[0])
    assert not torch.equal(rewarded[0], digits.reward_batch(10, 100)[0])


def test_a_reward_leaves_the_supernet_alone() -> None:
    """The same step with and without an update of the sampler gives the same weights; the update moves the policy."""
    config, digits, reach = ExperimentConfig(steps=20), split_digits(1), reachable()

    def stepped(step: int, name: str) -> tuple[dict[str, torch.Tensor], Log]:
        supernet, strategy, log = new_supernet(1), new_strategy(name, 1, reach, config), Log()
        optimizer = torch.optim.AdamW(supernet.parameters(), 1e-3)
        one_step(supernet, optimizer, strategy, digits, reach, step, 16, log)
        return supernet.state_dict(), log

    (uniform, plain), (focused, log) = stepped(2, UNIFORM), stepped(2, FOCUS)
    assert all(torch.equal(uniform[key], focused[key]) for key in uniform) and plain.losses == log.losses
    assert log.updates["step"] == [2] and log.updates["feasible"] == [1] and not plain.updates


def test_every_budget_has_room_for_the_searches() -> None:
    reach = reachable()
    for budget in budgets(reach):
        fitting = sum(WINDOW * budget <= macs(SPACE.sizes, one) <= budget for one in SPACE)
        assert fitting == reach.count(reach.window(budget)) >= 200


def test_a_search_tells_the_loss_that_it_chose_by() -> None:
    digits, reach = split_digits(1), reachable()
    chooser = Chooser(new_supernet(1), digits, reach, 0)
    found, traces = chooser.best_random(3)
    for one, trace in zip(found, traces, strict=True):
        assert trace == sorted(trace, reverse=True) and len(trace) == one.evaluations == 3 <= one.draws
        chosen = Architecture.parse(one.architecture)
        assert trace[-1] == one.held_out == accuracy_and_loss(chooser.supernet, digits.held_out, chosen)[1]
        assert (one.accuracy, one.loss) == accuracy_and_loss(chooser.supernet, digits.test, chosen)
        assert 0 <= one.misses <= one.draws - 3
    (once, again) = chooser.single(), chooser.single()
    assert once == again and all(one.architecture == "" and one.evaluations == 1 for one in once)


def test_diverging_loss_is_named(tmp_path: Path) -> None:
    line = focusformer.child("train", *WORDS, "--lr", "1e30", cwd=tmp_path, code=1).line
    assert "the loss is not finite at step" in line and "uniform" in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seeds", "0"], 1, "seeds 0 is below 1"),
        (["--steps", "9"], 1, "steps 9 is below 10"),
        (["--batch_size", "901"], 1, "batch_size 901 is above the 900 images"),
        (["--evaluations", "30"], 1, "evaluations 30 is no multiple of 4"),
        (["--alone", "-1"], 1, "alone -1 is below 0"),
        (["--policy", "magic"], 2, "policy"),
        (["--lr", "much"], 2, "lr"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    assert message in focusformer.refused("train", *words, cwd=tmp_path, code=code)
    assert not list(tmp_path.rglob("started"))


def made_result(seed: int, accuracies: dict[str, float], **changes: float) -> SeedResult:
    """A result in which each arm found the same for all budgets."""
    one = Found(0.0, 1.0, 0.5, 1, 1, 0, 90.0, "16/1/1")
    evaluations = {names.U30: 30, names.EVOLUTION: 200}
    arms = {
        arm: [replace(one, accuracy=accuracies.get(arm, 80.0), evaluations=evaluations.get(arm, 1))] * BUDGETS
        for arm in ARMS
    }
    feasible = {"feasible": [1.0, changes.get("feasible", 1.0)]}
    traces = {arm: [[0.9, changes.get("reached", 0.4)]] * BUDGETS for arm in (names.RANDOM, names.EVOLUTION)}
    return SeedResult(seed, [100.0] * BUDGETS, arms, traces, {}, feasible, [], [])


def test_claims_can_fail() -> None:
    """F1 half a point above U1, a sample that does not fit, a search of 100 evaluations told as one of 200."""
    good = [made_result(seed, {names.F1: 82.0}) for seed in (1, 2)]
    claims = asserted_claims(good, 200)
    assert [claim.asserted and claim.held for claim in claims] == [True, True, True]
    assert [claim.asserted for claim in asserted_claims(good[:1], 200)] == [False, True, True]
    bad = [made_result(seed, {names.F1: 80.5}, feasible=0.75) for seed in (1, 2)]
    assert not any(claim.held for claim in asserted_claims(bad, 100))


def test_a_loss_that_is_not_reached_is_told() -> None:
    assert reached_by(made_result(1, {}), names.RANDOM) == [2] * BUDGETS
    late = made_result(1, {}, reached=0.6)
    assert reached_by(late, names.EVOLUTION) == [None] * BUDGETS
    told = [claim.detail for claim in reported_claims([late]) if "held-out loss of F1" in claim.text]
    assert len(told) == 2 and all("not reached, not reached" in detail for detail in told)
    assert not any(claim.asserted for claim in reported_claims([late]))
