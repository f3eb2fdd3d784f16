"""The embedded experiment through the command, shortened: its claims, its loss trace, and what cuts it short."""

import json
from pathlib import Path

import pytest
import torch
from made import faseg

from faseg.experiment.exactness import Exactness
from faseg.experiment.looking import SIZES, look
from faseg.experiment.losses import MATCHER, scene_loss
from faseg.experiment.measuring import labels_of, mean_iou
from faseg.experiment.network import new_network
from faseg.experiment.run import run_seed
from faseg.experiment.scenes import CLASSES, NOTHING, make_scenes
from faseg.experiment.settings import ARMS, BASE, DFPQ, FASEG, ExperimentConfig, SeedResult
from faseg.experiment.summary import exact_claims, learned_claim, order_claims
from faseg.figures.layer_maps import as_map
from faseg.method.criterion import Criterion
from faseg.method.matcher import Targets
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import any_file
from paperkit.testing.golden import TRACE, check_losses
from paperkit.testing.runs import check_same_runs

SHORT = ["--seeds", "1", "--steps", "54", "--train_scenes", "32", "--test_scenes", "16", "--batch_size", "2"]
SHORT += ["--width", "16", "--queries", "4"]
TINY = ExperimentConfig(seeds=1, steps=20, train_scenes=32, test_scenes=8, batch_size=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("short")
    faseg.here("train", *SHORT, "--name", "whole", cwd=folder)
    return folder / "runs" / "faseg" / "whole"


def test_what_is_asserted_holds_and_eval_finds_the_same(whole: Path) -> None:
    metrics = Metrics.read(whole / "metrics.json")
    assert [claim.text for claim in metrics.claims if claim.asserted and not claim.held] == []
    assert sum(claim.asserted for claim in metrics.claims) == 4
    assert list(whole.rglob("events.out.tfevents*"))
    assert faseg.here("figures", whole, cwd=whole.parents[2]).out.count(".png") == 6
    assert all(path.stat().st_size > 5000 for path in (whole / "figures").glob("*.png"))
    assert "held (asserted)" in faseg.here("eval", "--ckpt", whole, cwd=whole.parents[2]).out
    again = Metrics.read(whole / "metrics.json")
    assert [(row.arm, row.metric) for row in again.rows] == [(row.arm, row.metric) for row in metrics.rows]
    assert again.extra["ious"] == metrics.extra["ious"]


def test_killed_and_resumed_leaves_the_same_run(whole: Path) -> None:
    """Within the second arm, after its checkpoint."""
    folder, cut = whole.parents[2], whole.parent / "cut"
    faseg.start("train", *SHORT, "--name", "cut", cwd=folder).kill_when(any_file(cut / "seed-0" / DFPQ, "last.ckpt"))
    assert not (cut / "finished").exists()
    faseg.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(whole, cut)


def test_loss_trace(tmp_path: Path) -> None:
    """The first 20 losses of the four arms are those that were stored: the computation is the same."""
    run_seed(0, lambda steps: None, str(tmp_path), TINY)
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("losses.json")}
    assert found.keys() == ARMS.keys() and all(len(losses) == 20 for losses in found.values())
    check_losses(found, Path(__file__).parents[1] / "golden" / TRACE)


def test_diverging_loss_is_named(tmp_path: Path) -> None:
    line = faseg.child("train", *SHORT, "--lr", "1e30", cwd=tmp_path, code=1).line
    assert "the loss is not finite at step" in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seeds", "0"], 1, "seeds 0 is below 1"),
        (["--split", "train"], 1, "split 'train' is neither test nor val"),
        (["--smallest", "20"], 1, "digits of 20 to 14 pixels"),
        (["--largest", "33"], 1, "digits of 9 to 33 pixels"),
        (["--width", "20"], 1, "width 20 is no multiple of 8"),
        (["--layers", "4"], 1, "layers 4 is below 5"),
        (["--omega", "17"], 1, "omega 17 keeps none of the 16 windows"),
        (["--lr", "much"], 2, "lr"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    assert message in faseg.refused("train", *words, cwd=tmp_path, code=code)
    assert not list(tmp_path.rglob("started"))


def test_scenes_are_the_same_every_time_and_splits_share_no_scan() -> None:
    first, again, other = make_scenes("train", 8), make_scenes("train", 8), make_scenes("test", 8)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    images, labels = first
    ink = labels != NOTHING
    assert set(labels[ink].unique().tolist()) <= set(range(len(CLASSES))) and ink.any((1, 2)).all()
    assert images[:, 0][ink].mean() > 0.3 and abs(images[:, 0][~ink].mean()) < 0.05


def test_arms_share_initial_weights() -> None:
    networks = {arm: new_network(arm, 3, TINY).state_dict() for arm in ARMS}
    for arm, state in networks.items():
        for name, value in state.items():
            assert torch.equal(value, networks[FASEG][name][: len(value)]), (arm, name)
    only = {name for name in networks[FASEG] if name not in networks[BASE]}
    assert only == {f"decoder.adapt_pos2d.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert not torch.equal(networks[BASE]["mask_features.weight"], new_network(BASE, 4, TINY).mask_features.weight)


def test_loss_is_the_criterions_with_the_pairs_of_the_last_output() -> None:
    """Every pixel is a point, and an output that is matched once has the same loss as one that is matched anew."""
    images, labels = make_scenes("train", 3)
    outputs = new_network(FASEG, 0, TINY)(images)
    last = {**outputs, "aux_outputs": []}
    targets, features = Targets.of_maps(labels, NOTHING), outputs["mask_features"]
    centres = (torch.stack(torch.meshgrid(torch.arange(32), torch.arange(32), indexing="xy"), -1) + 0.5) / 32
    points, criterion = centres.flatten(0, 1)[None], Criterion(len(CLASSES))
    logits, embeddings = last["pred_logits"], last["mask_embeddings"]
    costs = MATCHER.costs(logits, embeddings, features, targets, points.expand(3, -1, -1))
    pairs = MATCHER.assign(MATCHER.weigh(costs), targets.counts)
    maps, masks = criterion.paired(embeddings, features, targets, pairs)
    crossed, dice = criterion.mask_losses(maps, masks, points.expand(len(maps), -1, -1))
    expected = 2 * criterion.class_loss(logits, targets, pairs) + 5 * (crossed + dice) / sum(targets.counts)
    torch.testing.assert_close(scene_loss(last, labels), expected)
    assert scene_loss(outputs, labels) > 5 * expected  # six outputs


def test_mean_iou_counts_labels_on_empty_ground() -> None:
    labels = torch.tensor([[[0, 0, 1], [NOTHING, NOTHING, 1], [2, 3, 1]]])
    assert mean_iou(labels, labels) == 100
    found = torch.tensor([[[0, 1, 1], [NOTHING, 2, 1], [2, 3, 1]]])
    assert mean_iou(found, labels) == pytest.approx(100 * (1 / 2 + 3 / 4 + 1 / 2 + 1) / 4)
    sure = {"pred_logits": torch.tensor([[[9.0, -9, -9, -9, -9]]]), "pred_masks": torch.tensor([[[[9.0, -9.0]]]])}
    assert labels_of(sure).tolist() == [[[0, NOTHING]]]


def test_windows_lie_where_they_were_chosen() -> None:
    """Each map of the finest level sums to 1, and is 0 outside the cells that the layer chose."""
    trace, likely = look(new_network(FASEG, 0, TINY), make_scenes("test", 2)[0])
    fine = as_map(trace[3], SIZES)
    assert fine.shape == (2, TINY.queries, 32, 32) and likely.shape == (2, TINY.queries)
    torch.testing.assert_close(fine.sum((2, 3)), torch.ones(2, TINY.queries))
    cells = fine.unflatten(3, (4, 8)).unflatten(2, (4, 8)).sum((3, 5)).flatten(2)
    for scene in range(2):
        assert set(cells[scene, 0].nonzero()[:, 0].tolist()) == set(trace[3].cells[scene].tolist())
    torch.testing.assert_close(fine[0, 1, :8, :8].sum(), cells[0, 1, 0])


def test_claims_can_fail() -> None:
    wrong = Exactness(1.0, (1024, 1024), (100, 100), 1.0, (10, 10))
    assert not any(claim.held for claim in exact_claims(wrong, 4))
    low = {arm: [1.0, 1.0, 30.0 if arm == BASE else 20.0, 1.0, 30.0 if arm == BASE else 20.0] for arm in ARMS}
    steady = {arm: [0.5, 0.5, 0.5, 0.5 if arm == BASE else 0.4] for arm in ARMS}
    results = [SeedResult(seed, low, steady, {}) for seed in range(2)]
    assert not any(claim.held for claim in order_claims(results))
    learned = learned_claim(results, ExperimentConfig())
    assert learned.asserted and not learned.held and not learned_claim(results, TINY).asserted
