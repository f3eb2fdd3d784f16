"""The embedded experiment through the command, shortened: its claims, its loss trace, and what cuts it short."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import stpt

from paperkit.results.metrics import Metrics
from paperkit.testing.commands import any_file
from paperkit.testing.golden import TRACE, check_losses
from paperkit.testing.runs import check_same_runs
from stpt.experiment.clips import CUE_FRAMES, FIRST, FRAMES, LONGEST, SHORTEST, make_clips, other_cue, present
from stpt.experiment.measuring import change_by_cue, found_in, precisions
from stpt.experiment.network import new_network
from stpt.experiment.run import boundaries, clip_loss, run_seed
from stpt.experiment.settings import LLGG, LLLL, REFINED, ExperimentConfig, SeedResult
from stpt.experiment.summary import AFSD, CHANGE, HEAD, MACS, WHOLE, compute_claims, cue_claims, order_claims

SHORT = ["--seeds", "1", "--steps", "52", "--batch_size", "1", "--test_clips", "8", "--channels", "16"]
TINY = ExperimentConfig(seeds=1, steps=20, lr=5e-4, batch_size=2, test_clips=4, also=["GGGG"], refined=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("short")
    stpt.here("train", *SHORT, "--name", "whole", cwd=folder)
    return folder / "runs" / "stpt" / "whole"


def test_what_is_asserted_holds_and_eval_finds_the_same(whole: Path) -> None:
    """The margin of LLGG is asserted for runs of full length only."""
    metrics = Metrics.read(whole / "metrics.json")
    assert [claim.text for claim in metrics.claims if claim.asserted and not claim.held] == []
    assert sum(claim.asserted for claim in metrics.claims) == 5
    assert metrics.row(LLLL, CHANGE).mean == 0 < metrics.row(LLGG, CHANGE).mean
    assert list(whole.rglob("events.out.tfevents*"))
    assert stpt.here("figures", whole, cwd=whole.parents[2]).out.count(".png") == 4
    assert all(path.stat().st_size > 5000 for path in (whole / "figures").glob("*.png"))
    assert "held (asserted)" in stpt.here("eval", "--ckpt", whole, cwd=whole.parents[2]).out
    again = Metrics.read(whole / "metrics.json")
    assert [(row.arm, row.metric) for row in again.rows] == [(row.arm, row.metric) for row in metrics.rows]
    assert again.extra["precision"] == metrics.extra["precision"]


def test_multiply_accumulates_are_those_of_the_real_networks(whole: Path) -> None:
    metrics = Metrics.read(whole / "metrics.json")
    expected = {"LLLL": 110.2, "LLLG": 110.4, "LLGG": 110.4, "LGGG": 367.3, "GGGG": 1403.7, HEAD: 2.0, AFSD: 162.0}
    found = {name: round(metrics.row(f"{name}, {WHOLE}", MACS).mean, 1) for name in expected}
    assert found == expected


def test_killed_and_resumed_leaves_the_same_run(whole: Path) -> None:
    """Within the second arm, after its checkpoint."""
    folder, cut = whole.parents[2], whole.parent / "cut"
    stpt.start("train", *SHORT, "--name", "cut", cwd=folder).kill_when(any_file(cut / "seed-0" / LLLL, "last.ckpt"))
    assert not (cut / "finished").exists()
    stpt.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(whole, cut)


def test_loss_trace(tmp_path: Path) -> None:
    """The first 20 losses of all arms are those that were stored; the refined arm is measured in four ways."""
    result = run_seed(0, lambda steps: None, str(tmp_path), TINY)
    assert result.precision.keys() > {LLGG, LLLL, "GGGG"} and len(result.precision) == 7
    assert result.change[LLLL] == 0 and min(result.change[LLGG], result.change["GGGG"]) > 0
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("losses.json")}
    assert len(found) == 4 and all(len(losses) == 20 for losses in found.values())
    check_losses(found, Path(__file__).parents[1] / "golden" / TRACE)


def test_diverging_loss_is_named(tmp_path: Path) -> None:
    line = stpt.child("train", *SHORT, "--lr", "1e30", cwd=tmp_path, code=1).line
    assert "the loss is not finite at step" in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seeds", "0"], 1, "seeds 0 is below 1"),
        (["--split", "train"], 1, "split 'train' is neither test nor val"),
        (["--also", "[LGX]"], 1, "pattern 'LGX' is not four letters of"),
        (["--also", "[LGGX]"], 1, "pattern 'LGGX' is not four letters of"),
        (["--channels", "15"], 1, "channels 15 cannot be halved"),
        (["--lr", "much"], 2, "lr"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    assert message in stpt.refused("train", *words, cwd=tmp_path, code=code)
    assert not list(tmp_path.rglob("started"))


def test_clips_are_the_same_every_time_and_follow_the_rules() -> None:
    clips, again, other = make_clips("train", 32, 3), make_clips("train", 32, 3), make_clips("train", 32, 4)
    assert torch.equal(clips.frames, again.frames) and torch.equal(clips.actions, again.actions)
    assert not torch.equal(clips.frames, other.frames)
    counts = set()
    for clip in range(32):
        rows = clips.of_clip(clip)
        counts.add(len(rows))
        start, end = (rows[:, :2] * FRAMES).round().T
        assert (start >= FIRST).all() and (end <= FRAMES).all() and (start[1:] > end[:-1]).all()
        assert ((end - start >= SHORTEST) & (end - start <= LONGEST)).all()
        cue = (rows[:, 2] > 2).unique()
        assert len(cue) == 1  # one band a clip
        band = clips.frames[clip, 0, :CUE_FRAMES]
        assert bool(cue) == bool(band[:, 5:, :4].mean() > band[:, :4, 5:].mean())
    assert counts == {1, 2, 3}


def test_a_digit_moves_in_actions_and_along_the_axis_of_the_label() -> None:
    """Centre of the ink over time: its spread is that of the swing inside, of the tremor outside."""
    clips = make_clips("test", 24)
    ink = (clips.frames[:, 0] - 0.3).clamp(min=0)
    places = torch.arange(16.0)
    centre = torch.stack([(ink.sum(axis) * places).sum(-1) / ink.sum((-1, -2)) for axis in (-1, -2)], -1)  # down, right
    for clip in range(24):
        for start, end, label in clips.of_clip(clip).tolist():
            down, right = centre[clip, round(start * FRAMES) : round(end * FRAMES)].std(0)
            sideways = int(label) in (1, 3)
            assert (right > 1.5 > down) if sideways else (down > 1.5 > right)
        assert (centre[clip, CUE_FRAMES:FIRST].std(0) < 1).all()


def test_the_other_cue_changes_the_band_alone() -> None:
    clips = make_clips("test", 16)
    moved = other_cue(clips)
    assert torch.equal(moved[:, :, CUE_FRAMES:], clips.frames[:, :, CUE_FRAMES:])
    again = other_cue(clips._replace(frames=moved, actions=swapped(clips.actions)))
    torch.testing.assert_close(again, clips.frames)
    assert ((moved - clips.frames)[:, :, :CUE_FRAMES].abs().amax((1, 2, 3, 4)) > 0.9).all()


def swapped(actions: torch.Tensor) -> torch.Tensor:
    """The actions under the other band."""
    labels = actions[..., 2]
    return torch.cat([actions[..., :2], torch.where(labels > 0, (labels + 1) % 4 + 1, labels)[..., None]], -1)


def test_late_outputs_of_llll_do_not_depend_on_the_cue_whatever_the_weights() -> None:
    """Positional convolutions start as zeros, so they are made large here; cells before the actions do see the cue."""
    clips = make_clips("test", 4)
    changes = {}
    for pattern in (LLLL, LLGG):
        network = new_network(pattern, 0, TINY)
        generator = torch.Generator().manual_seed(1)
        for weight in network.backbone.parameters():
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        changes[pattern] = change_by_cue(network, clips)
        with torch.no_grad():
            ours, theirs = network(clips.frames), network(other_cue(clips))
        reached = (ours["conf"] - theirs["conf"]).abs().amax((0, 2)) > 0
        assert reached[:5].all()
    assert changes[LLLL] == 0 < changes[LLGG]


def test_patterns_share_initial_weights() -> None:
    networks = {arm: new_network(arm, 3, TINY).state_dict() for arm in (LLGG, LLLL, "GGGG")}
    for state in networks.values():
        assert state.keys() == networks[LLGG].keys()
        assert all(torch.equal(value, networks[LLGG][name]) for name, value in state.items())
    other = new_network(LLGG, 4, TINY).state_dict()["backbone.stages.0.blocks.0.attn.qkv.weight"]
    assert not torch.equal(other, networks[LLGG]["backbone.stages.0.blocks.0.attn.qkv.weight"])


def test_perfect_outputs_have_full_precision_and_the_least_loss() -> None:
    """Each cell inside an action says its segment and class; a wrong class loses the precision and costs."""
    clips = make_clips("test", 6)

    class Perfect(torch.nn.Module):
        shift = 0

        def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
            priors = (torch.arange(60) + 0.5) / 60
            loc, conf = torch.full((6, 60, 2), 0.1), torch.zeros(6, 60, 5)
            conf[..., 0] = 20
            for clip in range(6):
                for start, end, label in clips.of_clip(clip).tolist():
                    inside = (priors >= start) & (priors <= end)
                    loc[clip, inside] = FRAMES * torch.stack([priors - start, end - priors], -1)[inside]
                    conf[clip, inside, 0], conf[clip, inside, (int(label) - 1 + self.shift) % 4 + 1] = 0, 20
            return {"loc": loc, "conf": conf, "priors": priors[None, :, None]}

    network = Perfect()
    assert precisions(network, clips) == pytest.approx([100] * 5)
    assert len(found_in(network, clips.frames)) == 6
    assert float(clip_loss(network(clips.frames), clips.actions)) < 1e-3
    network.shift = 1
    assert precisions(network, clips) == [0] * 5
    assert float(clip_loss(network(clips.frames), clips.actions)) > 1


def test_boundaries_are_marked_around_starts_and_ends() -> None:
    starts, ends = boundaries([present(torch.tensor([[0.7, 0.8, 1.0], [0, 0, 0]])), torch.zeros(0, 3)])
    assert starts[0].nonzero()[:, 0].tolist() == [167, 168, 169] and ends[0].nonzero()[:, 0].tolist() == [191, 192, 193]
    assert starts.shape == (2, FRAMES) and not starts[1].any() and not ends[1].any()


def test_rate_rises_and_falls() -> None:
    config = replace(TINY, steps=100, lr=1.0)
    rates = np.array([config.rate(step) for step in range(100)])
    assert (
        rates.argmax() == 10 and rates[10] == 1 and (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    )
    assert 0 < rates[-1] < 0.01


def test_claims_can_fail() -> None:
    whole = {"LLLL": 110.0, "LLLG": 110.0, "LLGG": 120.0, "LGGG": 100.0, "GGGG": 300.0, HEAD: 2.0, AFSD: 150.0}
    assert not any(claim.held for claim in compute_claims(whole))
    flat = {LLGG: [70.0] * 5, LLLL: [60.0] * 5, "GGGG": [80.0] * 5}
    results = [SeedResult(seed, flat, {LLGG: 0.0, LLLL: 1e-9}) for seed in range(2)]
    assert not any(claim.held for claim in cue_claims(results))
    full = order_claims(results, ExperimentConfig(also=["GGGG"]))
    assert len(full) == 3 and not any(claim.held for claim in full) and full[0].asserted
    assert not order_claims(results, replace(TINY, also=[]))[0].asserted
    good = {**flat, LLGG: [90.0] * 5, LLLL: [55.0] * 5, "GGGG": [90.0] * 5}
    held = order_claims([SeedResult(0, good, {})], ExperimentConfig(also=["GGGG"]))
    assert all(claim.held for claim in held)
    assert REFINED not in ExperimentConfig().arms
