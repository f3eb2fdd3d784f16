"""Runs on lists of images through the command: train, kill, resume, two processes, evaluate, sweep."""

import hashlib
import json
import shutil
from pathlib import Path
from signal import SIGKILL, SIGTERM
from types import SimpleNamespace

import pytest
import torch
import yaml
from made import small_lists, spt
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from paperkit.files.weights import read_checkpoint
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import at_call
from paperkit.testing.runs import check_same_runs
from spt.training.image_lists import VTAB
from spt.training.lists import ReleasedEvaluation
from spt.training.recipe import RecipeOptions
from spt.training.sweep import group_means, published


def test_run_folder_and_evaluation(lists: Path) -> None:
    run = lists / "runs" / "spt" / "one"
    for name in (
        "config.yaml",
        "env.json",
        "metrics.json",
        "finished",
        "checkpoints/last.ckpt",
        "sensitivities.safetensors",
    ):
        assert (run / name).is_file(), name
    assert list((run / "tensorboard").glob("events*"))
    out = spt.child("eval", "--ckpt", run, "--output", lists / "again", cwd=lists).out
    before, after = Metrics.read(run / "metrics.json"), Metrics.read(lists / "again" / "metrics.json")
    assert "official_max" in out and before.rows == after.rows
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any(name.endswith("mlp.fc1.weight") for name in checkpoint["state_dict"])  # no frozen backbone inside


STEP, EVALUATION = "TuningModule.training_step", "TuningModule.on_validation_epoch_end"


@pytest.mark.parametrize(
    ("moment", "call", "number", "sent"),
    [
        ("measuring", "spt.training.lists:measure_sensitivities", 1, SIGKILL),
        ("in the first epoch", f"spt.training.tuning_module:{STEP}", 2, SIGKILL),
        ("in the first epoch's last step", f"spt.training.tuning_module:{STEP}", 4, SIGTERM),
        ("before an evaluation is saved", f"spt.training.tuning_module:{EVALUATION}", 2, SIGKILL),
        ("inside the second epoch", f"spt.training.tuning_module:{STEP}", 6, SIGTERM),
        ("in the very last step", f"spt.training.tuning_module:{STEP}", 12, SIGTERM),
    ],
)
def test_ended_and_resumed_gives_the_same_run(
    moment: str, call: str, number: int, sent: int, lists: Path, tmp_path: Path
) -> None:
    """Three epochs of four steps, each evaluated: everything beside the weights is the uninterrupted run's as well."""
    run = tmp_path / "runs" / "spt" / moment
    code = 128 + sent if sent == SIGTERM else -sent
    ended = spt.child(
        "train", "--name", moment, *small_lists(lists), cwd=tmp_path, patch=at_call(call, number, sent), code=code
    )
    assert not (run / "finished").exists() and (sent == SIGKILL or "resume with: spt train --resume" in ended.line)
    named = {"measuring": [run], "in the first epoch": [moment]}.get(moment, [])  # folder, name, the newest
    spt.child("train", "--resume", *named, cwd=tmp_path)
    check_same_runs(lists / "runs" / "spt" / "one", run)


def test_a_run_that_goes_on_inside_an_epoch_evaluates_as_released() -> None:
    """Every ten epochs and in each of the last ten: told at the start too, where no epoch begins."""
    recipe, trainer = RecipeOptions(epochs=40), SimpleNamespace(current_epoch=0, check_val_every_n_epoch=1)
    every = ReleasedEvaluation(recipe)
    for epoch in range(40):
        for tell in (every.on_train_start, every.on_train_epoch_start):
            trainer.current_epoch, trainer.check_val_every_n_epoch = epoch, 7
            tell(trainer, None)  # type: ignore[arg-type]
            due = epoch + 1 in (10, 20, 30) or epoch >= 30
            assert ((epoch + 1) % trainer.check_val_every_n_epoch == 0) == due


def test_losses_are_logged_every_five_steps(lists: Path) -> None:
    events = EventAccumulator(str(lists / "runs" / "spt" / "one" / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("train_loss")] == [4, 9]


def test_options_beside_resume_go_over_the_saved_ones(lists: Path, tmp_path: Path) -> None:
    """A lower learning rate and another place of the data, as the line on a loss that is not finite advises."""
    run = tmp_path / "runs" / "spt" / "cut"
    child = spt.start("train", "--name", "cut", *small_lists(lists, **{"recipe.epochs": "9"}), cwd=tmp_path)
    child.kill_when(run / "checkpoints" / "last.ckpt")
    shutil.copytree(lists / "vtab", tmp_path / "moved")
    spt.child("train", "--resume", "--recipe.warmup_lr", "1e-9", "--data.root", tmp_path / "moved", cwd=tmp_path)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["recipe"]["warmup_lr"] == 1e-9 and saved["data"]["root"] == str(tmp_path / "moved")
    assert saved["recipe"]["epochs"] == 9 and saved["engine"] == "lists"
    groups = read_checkpoint(run / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    rate = 1e-9 + 7 * (1e-3 - 1e-9) / 10  # of the ninth epoch, one late
    assert [group["lr"] for group in groups] == pytest.approx([rate, rate], rel=1e-9)


def test_two_processes_tune_like_one(lists: Path) -> None:
    """Same sensitivities, same batches cut in two: the same weights up to rounding. Dropout differs by process: off."""
    same = {
        "method.drop": "0",
        "method.drop_path": "0",
        "backbone.drop_path": "0",
        "method.init": "zero",
        "recipe.warmup_epochs": "0",
        "recipe.epochs": "2",
    }
    spt.child("train", "--name", "single", *small_lists(lists, **same), cwd=lists)
    two = {"trainer.devices": "2", "trainer.strategy": "ddp", "recipe.batch_size": "2"}
    spt.process("train", "--name", "two", *small_lists(lists, **same, **two), cwd=lists)
    runs = [lists / "runs" / "spt" / name for name in ("single", "two")]
    measured = {hashlib.sha256((run / "sensitivities.safetensors").read_bytes()).hexdigest() for run in runs}
    assert len(measured) == 1  # they decide the selection
    a, b = (load_file(run / "delta" / "adapter_model.safetensors") for run in runs)
    assert a.keys() == b.keys()
    moved = [name for name, value in a.items() if name.endswith(("sparse_values", "learnable.1.weight"))]
    assert moved and all(float(a[name].abs().max()) > 1e-3 for name in moved)  # they start at zero
    for name, value in a.items():
        if not name.endswith("k.bias") and ".k.bias." not in name:  # no gradient but noise
            torch.testing.assert_close(b[name], value, rtol=1e-2, atol=1e-4, msg=name)
    results = [Metrics.read(run / "metrics.json").rows[0].values for run in runs]
    assert results[0] == results[1]


def test_checkpointing_changes_no_bit(lists: Path, tmp_path: Path) -> None:
    """The saving that fits this method: activations computed again, dropout drawn again from the same state."""
    run = tmp_path / "runs" / "spt" / "less"
    spt.child("train", "--name", "less", *small_lists(lists), "--savings.checkpointing", "true", cwd=tmp_path)
    assert "checkpointing: true" in (run / "config.yaml").read_text()
    check_same_runs(lists / "runs" / "spt" / "one", run, ignore=["config.yaml"])


def test_sweep_resumes_draws_and_prints_the_papers_table(lists: Path, tmp_path: Path) -> None:
    options = small_lists(lists, **{"recipe.epochs": "1"})[2:]
    out = spt.child(
        "sweep", "--name", "s", *options, "--tasks", "[svhn,eurosat]", "--budgets", "[1200,1500]", cwd=tmp_path
    ).out
    assert "mean of groups" in out and "87.9" in out  # SVHN in the paper
    run = tmp_path / "runs" / "spt" / "s"
    drawn = spt.child("figures", run, cwd=tmp_path).out
    assert all(name in drawn for name in ("sensitivity_by_block.png", "selections.png", "budget.png", "epochs.png"))
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (run / "figures").iterdir())
    results = json.loads((run / "sweep.json").read_text())
    assert set(results) == {"svhn", "eurosat"} and results["svhn"]["budget"] in (1200, 1500)
    kept = (run / "svhn" / "val-1200" / "metrics.json").stat().st_mtime_ns
    (run / "finished").unlink()
    shutil.rmtree(run / "eurosat")
    again = spt.child("sweep", "--resume", run, cwd=tmp_path).out
    assert "mean of groups" in again and json.loads((run / "sweep.json").read_text()) == results
    assert (run / "svhn" / "val-1200" / "metrics.json").stat().st_mtime_ns == kept


def test_group_means_of_the_published_rows() -> None:
    """Each published row reproduces its own group means."""
    tables = published()
    for row in ("spt_adapter", "spt_lora"):
        means = group_means(tables["per_task"][row])
        assert means == pytest.approx(tables["groups"]["supervised"][row], abs=0.06)
        assert set(tables["per_task"][row]) == set(VTAB)
    assert group_means(tables["per_task"]["rerun_at_0.4M"])[3] == pytest.approx(75.1, abs=0.1)
