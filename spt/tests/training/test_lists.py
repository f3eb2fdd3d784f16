"""Runs on real data through the command: train, kill, resume, two processes, evaluate, predict, serve, export,
sweep."""

import hashlib
import json
import os
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from forked import in_child, killed_when
from made import make_vtab
from safetensors.torch import load_file
from test_experiment import SPT, here, spt

from paperkit.files.weights import save_weights
from paperkit.results.metrics import Metrics
from spt.deployment.task_model import open_task, read_image
from spt.models.backbones import create_backbone
from spt.models.hub_model import SPTClassifier
from spt.training.image_lists import VTAB
from spt.training.sweep import group_means, published

SIZES = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}


def small(root: Path, **more: str) -> list[str]:
    """Options of a run that takes seconds."""
    options = {
        "data.root": str(root / "vtab"),
        "data.name": "svhn",
        "data.size": "32",
        "data.workers": "0",
        "backbone.arch": "vit_tiny_patch16_224",
        "backbone.sizes": json.dumps(SIZES),
        "backbone.file": str(root / "backbone.safetensors"),
        "method.budget": "1500",
        "method.rank": "2",
        "method.search": "exact",
        "recipe.epochs": "3",
        "recipe.batch_size": "4",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        **more,
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def world_in(root: Path) -> Path:
    """Data, a backbone file, and one finished run in `root`."""
    for task in ("svhn", "eurosat"):
        make_vtab(root / "vtab", task)
    torch.manual_seed(5)
    model = create_backbone("vit_tiny_patch16_224", 10, img_size=32, **SIZES)
    save_weights(root / "backbone.safetensors", {n: v for n, v in model.state_dict().items() if "head" not in n})
    code, text = in_child(["train", "--name", "one", *small(root)], root)
    assert code == 0, text
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_in(tmp_path_factory.mktemp("world"))


def digest(run: Path) -> str:
    return hashlib.sha256((run / "delta" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_run_folder_and_evaluation(world: Path) -> None:
    run = world / "runs" / "spt" / "one"
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
    before = json.loads((run / "metrics.json").read_text())
    out = in_child(["eval", "--ckpt", str(run)], world)[1]
    after = json.loads((run / "metrics.json").read_text())
    assert "official_max" in out and before["rows"][0]["values"] == after["rows"][0]["values"]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any(name.endswith("mlp.fc1.weight") for name in checkpoint["state_dict"])  # no frozen backbone inside


@pytest.mark.parametrize("moment", ["measuring", "first epoch", "second epoch"])
def test_kill_and_resume_give_the_same_bits(moment: str, world: Path) -> None:
    """Killed before anything is kept, after the sensitivities, and after the first checkpoint."""
    run = world / "runs" / "spt" / moment
    signs = {
        "measuring": "config.yaml",
        "first epoch": "sensitivities.safetensors",
        "second epoch": "checkpoints/last.ckpt",
    }
    killed_when(run / signs[moment], ["train", "--name", moment, *small(world)], world)
    assert not (run / "finished").exists()
    named = {"measuring": [str(run)], "first epoch": [moment], "second epoch": []}[moment]  # folder, name, the newest
    code, text = in_child(["train", "--resume", *named], world)
    assert code == 0, text
    assert digest(run) == digest(world / "runs" / "spt" / "one")


def test_two_processes_tune_like_one(world: Path) -> None:
    """Same sensitivities, same batches cut in two: the same weights up to rounding. Dropout differs by process: off."""
    same = {
        "method.drop": "0",
        "method.drop_path": "0",
        "backbone.drop_path": "0",
        "method.init": "zero",
        "recipe.warmup_epochs": "0",
        "recipe.epochs": "2",
    }
    code, text = in_child(["train", "--name", "single", *small(world, **same)], world)
    assert code == 0, text
    two = {"trainer.devices": "2", "trainer.strategy": "ddp", "recipe.batch_size": "2"}
    spt("train", "--name", "two", *small(world, **same, **two), cwd=world)
    runs = [world / "runs" / "spt" / name for name in ("single", "two")]
    assert run_index(runs[0]) == run_index(runs[1])
    a, b = (load_file(run / "delta" / "adapter_model.safetensors") for run in runs)
    assert a.keys() == b.keys()
    moved = [name for name, value in a.items() if name.endswith(("sparse_values", "learnable.1.weight"))]
    assert moved and all(float(a[name].abs().max()) > 1e-3 for name in moved)  # they start at zero
    for name, value in a.items():
        if not name.endswith("k.bias") and ".k.bias." not in name:  # no gradient but noise
            torch.testing.assert_close(b[name], value, rtol=1e-2, atol=1e-4, msg=name)
    results = [Metrics.read(run / "metrics.json").rows[0].values for run in runs]
    assert results[0] == results[1]


def run_index(run: Path) -> str:
    """The sensitivities decide the selection; both runs must have measured the same."""
    return hashlib.sha256((run / "sensitivities.safetensors").read_bytes()).hexdigest()


def test_checkpointing_changes_no_bit(world: Path, tmp_path: Path) -> None:
    """The saving that fits this method: activations computed again, dropout drawn again from the same state."""
    run = tmp_path / "runs" / "spt" / "less"
    code, text = in_child(["train", "--name", "less", *small(world), "--savings.checkpointing", "true"], tmp_path)
    assert code == 0, text
    assert digest(run) == digest(world / "runs" / "spt" / "one")
    assert "checkpointing: true" in (run / "config.yaml").read_text()


def test_predict_serve_and_export_agree(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spt = partial(here, cwd=tmp_path, monkeypatch=monkeypatch, capfd=capfd)
    delta, backbone = world / "runs" / "spt" / "one" / "delta", world / "backbone.safetensors"
    image = world / "vtab" / "svhn" / "images" / "test" / "000001.jpg"
    tuned = open_task(delta, str(backbone))
    x = read_image(image, 32)
    with torch.no_grad():
        expected = tuned(x)
    top = int(expected.argmax())
    common = ["--file", str(backbone)]
    assert f"class {top} " in spt("predict", str(image), "--delta", str(delta), *common)
    lines = f"a {image}\nb {image}\nmissing {image}\na nowhere.jpg\n"
    served = subprocess.run(
        [*SPT, "serve", "--deltas.a", str(delta), "--deltas.b", str(delta), *common],
        input=lines, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    answers = [json.loads(line) for line in served.stdout.splitlines()]
    assert [answer.get("top", [[None]])[0][0] for answer in answers[:2]] == [top, top]
    assert "no delta named missing" in answers[2]["error"] and "cannot be read" in answers[3]["error"]

    spt("export", str(delta), str(tmp_path / "m.safetensors"), *common)
    plain = create_backbone("vit_tiny_patch16_224", 10, img_size=32, **SIZES)
    plain.load_state_dict(load_file(tmp_path / "m.safetensors"))
    batch = torch.cat([x, x.flip(-1), -x])
    with torch.no_grad():
        logits = tuned(batch)
        torch.testing.assert_close(plain.eval()(batch), logits, rtol=1e-5, atol=1e-5)
    spt("export", str(delta), str(tmp_path / "hub"), "--to", "hub", *common)
    with torch.no_grad():
        assert torch.equal(SPTClassifier.from_pretrained(str(tmp_path / "hub")).eval()(batch), logits)
    spt("export", str(delta), str(tmp_path / "m.onnx"), "--to", "onnx", *common)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    onnx = session.run(None, {"images": batch.numpy()})[0]
    np.testing.assert_allclose(onnx, logits.numpy(), rtol=1e-4, atol=1e-4)
    spt("export", str(delta), str(tmp_path / "m.pt2"), "--to", "torch_export", *common)
    torch.testing.assert_close(torch.export.load(tmp_path / "m.pt2").module()(batch), logits, rtol=1e-5, atol=1e-5)


def test_sweep_resumes_and_prints_the_papers_table(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spt = partial(here, cwd=tmp_path, monkeypatch=monkeypatch, capfd=capfd)
    arguments = [*small(world, **{"recipe.epochs": "1"}), "--tasks", "[svhn,eurosat]", "--budgets", "[1200,1500]"]
    out = spt("sweep", "--name", "s", *arguments)
    assert "mean of groups" in out and "87.9" in out  # SVHN in the paper
    run = tmp_path / "runs" / "spt" / "s"
    drawn = spt("figures", str(run))
    assert all(name in drawn for name in ("sensitivity_by_block.png", "selections.png", "budget.png", "epochs.png"))
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (run / "figures").iterdir())
    results = json.loads((run / "sweep.json").read_text())
    assert set(results) == {"svhn", "eurosat"} and results["svhn"]["budget"] in (1200, 1500)
    kept = (run / "svhn" / "val-1200" / "metrics.json").stat().st_mtime_ns
    (run / "finished").unlink()
    for path in sorted((run / "eurosat").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    again = spt("sweep", "--resume", str(run))
    assert "mean of groups" in again and json.loads((run / "sweep.json").read_text()) == results
    assert (run / "svhn" / "val-1200" / "metrics.json").stat().st_mtime_ns == kept


def test_group_means_of_the_published_rows() -> None:
    """Each row of the specification reproduces its own group means."""
    tables = published()
    for row in ("spt_adapter", "spt_lora"):
        means = group_means(tables["per_task"][row])
        assert means == pytest.approx(tables["groups"]["supervised"][row], abs=0.06)
        assert set(tables["per_task"][row]) == set(VTAB)
    assert group_means(tables["per_task"]["rerun_at_0.4M"])[3] == pytest.approx(75.1, abs=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.root": "nowhere"}, "no VTAB-1k task at nowhere/svhn"),
        ({"data.name": "kitti"}, "no VTAB-1k task at"),
        ({"data.name": "moon"}, "no VTAB-1k task 'moon'"),
        ({"method.budget": "10"}, "smaller than one lora module"),
        ({"method.budget": "99999999"}, "larger than the model"),
        ({"backbone.file": "nowhere.npz"}, "no pretrained file at nowhere.npz"),
        ({"backbone.arch": "vit_moon"}, "no architecture 'vit_moon'"),
        ({"method.selection": "SELECTION"}, "of another architecture"),
        ({"recipe.lr": "1e38"}, "not finite"),
        ({"savings.patch_drop": "0.25"}, "patch_drop 0.25 is not for this method"),
        ({"savings.keep_hardest": "0.5"}, "keep_hardest 0.5 is not for this method"),
        ({"savings.sam_rho": "0.05"}, "sam_rho 0.05 is not for this method"),
        ({"savings.compile": "true"}, "compile True is not for this method"),
        ({"ema.decay": "0.9"}, "ema.decay 0.9 is not for this method"),
    ],
)
def test_bad_input_is_one_line(
    change: dict[str, str],
    words: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    golden = Path(__file__).parents[1] / "golden" / "param_req_0.4_format_sample.pth"
    change = {name: str(golden) if value == "SELECTION" else value for name, value in change.items()}
    out = here("train", *small(world, **change), cwd=tmp_path, monkeypatch=monkeypatch, capfd=capfd, code=1)
    assert words in out, out


def test_a_vtab_folder_that_lacks_something(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "vtab" / "svhn"
    damages = (
        (lambda: (task / "train800.txt").unlink(), "lacks the split file train800.txt"),
        (lambda: (task / "images" / "test" / "000002.jpg").unlink(), "1 of 6 images"),
        (lambda: (task / "test.txt").write_text("images/test/000000.jpg 11\n"), "class counts differ"),
        (lambda: (task / "images" / "train800" / "000000.jpg").write_bytes(b"half a picture"), "cannot be read"),
    )
    for number, (damage, words) in enumerate(damages):
        make_vtab(tmp_path / "vtab", "svhn")
        damage()
        arguments = ["train", "--name", str(number), *small(world, **{"data.root": str(tmp_path / "vtab")})]
        assert words in here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch, capfd=capfd, code=1)
