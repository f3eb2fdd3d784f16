"""Full disk, read-only folders, foreign and damaged files, through the commands: one line, nothing finished is lost."""

import os
import shutil
from pathlib import Path

import torch
from made import batches, small_lists, spt, tiny_vit
from safetensors.torch import load_file

from paperkit.files.weights import read_checkpoint, save_weights
from paperkit.testing.runs import check_same_runs
from spt.method.sensitivity import Sensitivities, measure_sensitivities, model_identity, save_sensitivities


def test_full_disk_loses_nothing_and_the_run_goes_on(lists: Path) -> None:
    """A checkpoint that does not fit is named; the one before stays, and the resumed run ends with the same bits."""
    run, whole = lists / "runs" / "spt" / "full", lists / "runs" / "spt" / "one"
    last = run / "checkpoints" / "last.ckpt"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("finished", "delta", "metrics.json", "checkpoints"))
    line = spt.child("train", "--resume", run, cwd=lists, limit=10_000, code=1).line
    assert f"cannot write {last}" in line and not list(last.parent.glob("*"))
    spt.child("train", "--resume", run, cwd=lists)
    check_same_runs(whole, run, ignore=["eval", "figures"])
    before = last.read_bytes()
    for name in ("finished", "delta/adapter_model.safetensors"):
        (run / name).unlink()
    assert "cannot write" in spt.child("train", "--resume", run, cwd=lists, limit=3_000, code=1).line
    assert last.read_bytes() == before and read_checkpoint(last)["global_step"] == 12
    assert not list(run.rglob("*.tmp*"))


def test_full_disk_in_the_embedded_experiment(tmp_path: Path) -> None:
    """The first save of the pre-training does not fit: its name stands in the line, and no half file in the folder."""
    short = ["--seeds", "1", "--tasks", "[flip]", "--steps", "5", "--pretrain_steps", "51"]
    line = spt.child("train", "--name", "x", *short, cwd=tmp_path, limit=100_000, code=1).line
    assert "pretraining.ckpt: File too large" in line
    names = {path.name for path in (tmp_path / "runs" / "spt" / "x").iterdir()}
    assert names <= {"started", ".lock", "env.json", "config.yaml"}


def test_a_folder_that_cannot_be_written(others_folder: Path, tmp_path: Path) -> None:
    line = spt.child("train", "--name", "x", cwd=others_folder, nobody=True, code=1).line
    assert "cannot make the run folder" in line and not list(others_folder.iterdir())
    source = others_folder if os.getuid() == 0 else tmp_path
    values = measure_sensitivities(tiny_vit(), batches(), eval_mode=True)
    save_sensitivities(source / "s.safetensors", values)
    arguments = ["allocate", str(source / "s.safetensors"), "--budget", "1500", "--rank", "2", "--fixed", "32"]
    target = others_folder / "p.pth"
    line = spt.child(*arguments, "--save", target, cwd=others_folder, nobody=True, code=1).line
    assert f"cannot write {target}" in line
    assert not (others_folder / "p.pth").exists()


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_damaged_deltas_and_foreign_files(lists: Path, tmp_path: Path) -> None:
    backbone, image = lists / "backbone.safetensors", lists / "vtab" / "svhn" / "images" / "test" / "000001.jpg"

    def refused(*arguments: str) -> str:
        return spt.refused(*arguments, cwd=tmp_path)

    def delta(name: str) -> Path:
        return Path(shutil.copytree(lists / "runs" / "spt" / "one" / "delta", tmp_path / name))

    cut = delta("cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-700])
    assert str(weights) in refused("predict", str(image), "--ckpt", str(cut), "--file", str(backbone))
    headless = delta("headless")
    state = load_file(headless / "adapter_model.safetensors")
    save_weights(headless / "adapter_model.safetensors", {n: v for n, v in state.items() if n != "head.weight"})
    assert "lacks head.weight" in refused("predict", str(image), "--ckpt", str(headless), "--file", str(backbone))
    narrow = delta("narrow")
    save_weights(narrow / "adapter_model.safetensors", {**state, "head.weight": torch.zeros(7, 32)})
    assert "class counts differ" in refused("predict", str(image), "--ckpt", str(narrow), "--file", str(backbone))
    other = load_file(backbone)
    save_weights(
        tmp_path / "other.safetensors", {n: v + 1 if n.endswith("fc1.weight") else v for n, v in other.items()}
    )
    whole = str(delta("whole"))
    for verb in (
        ["predict", str(image), "--ckpt", whole],
        ["serve", "--deltas.a", whole],
        ["export", "--ckpt", whole, "--to", "onnx"],
    ):
        assert "backbone with weights" in refused(*verb, "--file", str(tmp_path / "other.safetensors"))
    (tmp_path / "half").mkdir()
    assert "adapter_config.json is missing" in refused(
        "predict", str(image), "--ckpt", str(tmp_path / "half"), "--file", str(backbone)
    )

    for name, content in (
        ("evil.pth", {"model": Evil(tmp_path / "ran")}),
        ("param_req_0.4.pth", {"params": Evil(tmp_path / "ran")}),
    ):
        torch.save(content, tmp_path / name)
    evil, selection = str(tmp_path / "evil.pth"), str(tmp_path / "param_req_0.4.pth")
    assert "system" in refused("predict", str(image), "--ckpt", whole, "--file", evil)
    assert "system" in refused("convert", evil, "x.safetensors")
    assert "system" in refused("allocate", selection)
    assert "system" in refused("train", *small_lists(lists, **{"method.selection": selection}))
    assert "system" in refused("train", *small_lists(lists, **{"backbone.file": evil}))
    assert not (tmp_path / "ran").exists()


def test_sensitivities_that_say_nothing_or_are_of_another_model(lists: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        return spt.refused(*arguments, cwd=tmp_path)

    measured = measure_sensitivities(tiny_vit(), batches(), eval_mode=True)
    file, zero = tmp_path / "s.safetensors", tmp_path / "zero.safetensors"
    save_sensitivities(file, measured)
    save_sensitivities(
        zero, Sensitivities({n: torch.zeros_like(v) for n, v in measured.values.items()}, measured.identity)
    )
    options = ["--rank", "2", "--fixed", "32"]
    assert "all sensitivities are zero: a head of zeros" in refused("allocate", str(zero), *options)
    for budget, words in (("40", "smaller than one lora module"), ("99999999", "larger than the model")):
        assert words in refused("allocate", str(file), "--budget", budget, *options)
    line = refused("train", *small_lists(lists, **{"method.sensitivities": str(file)}))
    assert "of another architecture" in line
    assert model_identity(tiny_vit())["weights"] == measured.identity["weights"]


def test_a_damaged_checkpoint_is_named_and_kept(lists: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lists / "runs" / "spt" / "one", tmp_path / "runs" / "spt" / "one"))
    (run / "finished").unlink()
    last = run / "checkpoints" / "last.ckpt"
    half = last.read_bytes()[: last.stat().st_size // 2]
    last.write_bytes(half)
    line = spt.child("train", "--resume", run, cwd=tmp_path, code=1).line
    assert str(last) in line and last.read_bytes() == half
