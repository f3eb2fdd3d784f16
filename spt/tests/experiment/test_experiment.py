"""The embedded experiment through the real command: data, stored losses, exact resume after kill -9, figures."""

import json
from pathlib import Path

import pytest
import torch
from made import SHORT, spt

from paperkit.files.weights import read_metadata
from paperkit.testing.golden import check_losses
from paperkit.testing.runs import check_same_runs
from spt.experiment.arms import build_arm
from spt.experiment.digit_tasks import CLASSES, SOURCE_IMAGES, make_task, source_digits, unseen_digits
from spt.experiment.run import arm_file, prepare, pretrain, small_vit, tune
from spt.experiment.settings import SENSITIVE, ExperimentConfig
from spt.method.candidates import find_candidates


def test_data_are_disjoint_and_repeat() -> None:
    source, unseen = source_digits(0)[0], unseen_digits(0)[0]
    assert len(source) == SOURCE_IMAGES and len(unseen) == 897
    for name, classes in CLASSES.items():
        once, again, other = make_task(name, 3), make_task(name, 3), make_task(name, 4)
        assert torch.equal(once.train[0], again.train[0]) and not torch.equal(once.train[0], other.train[0])
        assert (len(once.train[1]), len(once.test[1])) == (250, 647) and int(once.test[1].max()) == classes - 1
    held = make_task("flip", 3, val_images=50)
    assert torch.equal(torch.cat([held.train[0], held.test[0]]), make_task("flip", 3).train[0])


def test_the_backbone_is_as_stated() -> None:
    """50,880 weights compete for the budget."""
    assert sum(shape.numel() for shape in find_candidates(small_vit(10)).shapes().values()) == 50_880


def test_losses_are_those_stored(tmp_path: Path) -> None:
    """20 steps of one arm after 10 of pre-training: few enough for any processor's rounding to stay below 1e-6.

    After 250 steps of pre-training two processors differ by 3.75 %, and the tolerance would hide another computation.
    """
    config = ExperimentConfig(seeds=1, tasks=("flip", "location"), steps=20, pretrain_steps=10)
    pretrain(0, lambda steps: None, str(tmp_path), config)
    losses = {}
    for task in config.tasks:
        data, setting = prepare(task, 0, tmp_path, config)
        arm = build_arm(SENSITIVE, setting)
        losses[task] = tune(arm, data, SENSITIVE, task, 0, config, lambda steps: None)
    check_losses(losses, Path(__file__).parents[1] / "golden" / "loss_trace.json")


def test_losses_are_kept_with_the_weights(digits: Path) -> None:
    kept = json.loads(read_metadata(arm_file(digits, 0, "flip", SENSITIVE))["losses"])
    assert len(kept) == 20 and kept[-1] < kept[0]


def test_figures_are_drawn_again(digits: Path, tmp_path: Path) -> None:
    names = {path.name for path in (digits / "figures").iterdir()}
    assert names == {
        *("accuracy.png", "sensitivity_by_block.png", "sensitivity_by_operation.png", "selections.png"),
        *("accuracy_by_share.png", "budget.png", "concentration.png", "overlap.png"),
    }
    printed = spt.here("figures", digits, "--output", tmp_path / "again").out
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (tmp_path / "again").iterdir())
    assert all(name in printed for name in names)


@pytest.mark.parametrize("moment", ["pre-training", "tuning"])
def test_kill_and_resume_give_the_same_run(moment: str, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "spt" / "cut"
    sign = run / "pretraining.ckpt" if moment == "pre-training" else run / "seed-0" / "flip"
    spt.start("train", "--name", "cut", *SHORT, cwd=tmp_path).kill_when(sign)
    assert not (run / "finished").exists()
    assert (run / "backbone.safetensors").exists() == (moment == "tuning")
    spt.child("train", "--resume", cwd=tmp_path)
    check_same_runs(digits, run)
