"""Full disk, read-only folders, foreign and damaged files, through the commands: one line, nothing finished is lost."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import in_child, only_line
from made import batches, make_vtab, tiny_vit
from safetensors.torch import load_file
from test_experiment import here
from test_real_data import digest, small, world_in

from paperkit.files.weights import read_checkpoint, save_weights
from spt.method.sensitivity import Sensitivities, measure_sensitivities, model_identity, save_sensitivities


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a backbone file, and one finished run; readable by everybody."""
    return world_in(tmp_path_factory.mktemp("faults"))


def test_full_disk_loses_nothing_and_the_run_goes_on(world: Path) -> None:
    """A checkpoint that does not fit is named; the one before stays, and the resumed run ends with the same bits."""
    run, whole = world / "runs" / "spt" / "full", world / "runs" / "spt" / "one"
    last = run / "checkpoints" / "last.ckpt"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("finished", "delta", "metrics.json", "checkpoints"))
    code, text = in_child(["train", "--resume", str(run)], world, limit=10_000)
    assert code == 1 and f"cannot write {last}" in only_line(text) and not list(last.parent.glob("*"))
    code, text = in_child(["train", "--resume", str(run)], world, limit=0)
    assert code == 0 and digest(run) == digest(whole)
    before = last.read_bytes()
    for name in ("finished", "delta/adapter_model.safetensors"):
        (run / name).unlink()
    code, text = in_child(["train", "--resume", str(run)], world, limit=3_000)
    assert code == 1 and "cannot write" in only_line(text)
    assert last.read_bytes() == before and read_checkpoint(last)["global_step"] == 12
    assert not list(run.rglob("*.tmp*"))


def test_full_disk_in_the_embedded_experiment(tmp_path: Path) -> None:
    """The first save of the pre-training does not fit: its name stands in the line, and no half file in the folder."""
    short = ["--seeds", "1", "--tasks", "[flip]", "--steps", "5", "--pretrain_steps", "101"]
    code, text = in_child(["train", "--name", "x", *short], tmp_path, limit=100_000)
    assert code == 1 and "pretraining.ckpt: File too large" in only_line(text)
    names = {path.name for path in (tmp_path / "runs" / "spt" / "x").iterdir()}
    assert names <= {"started", ".lock", "env.json", "config.yaml"}


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that others may read and not write; pytest's own lets no other user in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755 if os.getuid() == 0 else 0o555)
        yield path
        path.chmod(0o755)


def test_a_folder_that_cannot_be_written(readable: Path, world: Path, tmp_path: Path) -> None:
    code, text = in_child(["train", "--name", "x"], readable, nobody=True)
    assert code == 1 and "cannot make the run folder" in only_line(text) and not list(readable.iterdir())
    source = readable if os.getuid() == 0 else tmp_path
    values = measure_sensitivities(tiny_vit(), batches(), eval_mode=True)
    save_sensitivities(source / "s.safetensors", values)
    arguments = ["allocate", str(source / "s.safetensors"), "--budget", "1500", "--rank", "2", "--fixed", "32"]
    code, text = in_child([*arguments, "--save", str(readable / "p.pth")], readable, nobody=True)
    assert code == 1 and f"cannot write {readable / 'p.pth'}" in only_line(text)
    assert not (readable / "p.pth").exists()


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_damaged_deltas_and_foreign_files(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = partial(here, cwd=tmp_path, monkeypatch=monkeypatch, capfd=capfd)
    backbone, image = world / "backbone.safetensors", world / "vtab" / "svhn" / "images" / "test" / "000001.jpg"

    def refused(*arguments: str) -> str:
        return only_line(command(*arguments, code=1))

    def delta(name: str) -> Path:
        return Path(shutil.copytree(world / "runs" / "spt" / "one" / "delta", tmp_path / name))

    cut = delta("cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-700])
    assert str(weights) in refused("predict", str(image), "--delta", str(cut), "--file", str(backbone))
    headless = delta("headless")
    state = load_file(headless / "adapter_model.safetensors")
    save_weights(headless / "adapter_model.safetensors", {n: v for n, v in state.items() if n != "head.weight"})
    assert "lacks head.weight" in refused("predict", str(image), "--delta", str(headless), "--file", str(backbone))
    narrow = delta("narrow")
    save_weights(narrow / "adapter_model.safetensors", {**state, "head.weight": torch.zeros(7, 32)})
    assert "class counts differ" in refused("predict", str(image), "--delta", str(narrow), "--file", str(backbone))
    other = load_file(backbone)
    save_weights(
        tmp_path / "other.safetensors", {n: v + 1 if n.endswith("fc1.weight") else v for n, v in other.items()}
    )
    whole = str(delta("whole"))
    for verb in (
        ["predict", str(image), "--delta", whole],
        ["serve", "--deltas.a", whole],
        ["export", whole, "m.onnx"],
    ):
        assert "backbone with weights" in refused(*verb, "--file", str(tmp_path / "other.safetensors"))
    (tmp_path / "half").mkdir()
    assert "adapter_config.json is missing" in refused(
        "predict", str(image), "--delta", str(tmp_path / "half"), "--file", str(backbone)
    )

    for name, content in (
        ("evil.pth", {"model": Evil(tmp_path / "ran")}),
        ("param_req_0.4.pth", {"params": Evil(tmp_path / "ran")}),
    ):
        torch.save(content, tmp_path / name)
    evil, selection = str(tmp_path / "evil.pth"), str(tmp_path / "param_req_0.4.pth")
    assert "system" in refused("predict", str(image), "--delta", whole, "--file", evil)
    assert "system" in refused("convert", evil, "x.safetensors")
    assert "system" in refused("allocate", selection)
    assert "system" in refused("train", *small(world, **{"method.selection": selection}))
    assert "system" in refused("train", *small(world, **{"backbone.file": evil}))
    assert not (tmp_path / "ran").exists()


def test_sensitivities_that_say_nothing_or_are_of_another_model(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = partial(here, cwd=tmp_path, monkeypatch=monkeypatch, capfd=capfd, code=1)
    measured = measure_sensitivities(tiny_vit(), batches(), eval_mode=True)
    file, zero = tmp_path / "s.safetensors", tmp_path / "zero.safetensors"
    save_sensitivities(file, measured)
    save_sensitivities(
        zero, Sensitivities({n: torch.zeros_like(v) for n, v in measured.values.items()}, measured.identity)
    )
    options = ["--rank", "2", "--fixed", "32"]
    assert "all sensitivities are zero: a head of zeros" in only_line(command("allocate", str(zero), *options))
    for budget, words in (("40", "smaller than one lora module"), ("99999999", "larger than the model")):
        assert words in only_line(command("allocate", str(file), "--budget", budget, *options))
    line = only_line(command("train", *small(world, **{"method.sensitivities": str(file)})))
    assert "of another architecture" in line
    assert model_identity(tiny_vit())["weights"] == measured.identity["weights"]


def test_a_damaged_checkpoint_is_named_and_kept(world: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(world / "runs" / "spt" / "one", tmp_path / "runs" / "spt" / "one"))
    (run / "finished").unlink()
    last = run / "checkpoints" / "last.ckpt"
    half = last.read_bytes()[: last.stat().st_size // 2]
    last.write_bytes(half)
    code, text = in_child(["train", "--resume", str(run)], tmp_path)
    assert code == 1 and str(last) in only_line(text) and last.read_bytes() == half


def test_a_vtab_folder_that_lacks_its_last_split(world: Path, tmp_path: Path) -> None:
    """Named before any work is done: the run folder holds no sensitivities."""
    make_vtab(tmp_path / "vtab", "svhn")
    (tmp_path / "vtab" / "svhn" / "test.txt").unlink()
    code, text = in_child(["train", "--name", "t", *small(world, **{"data.root": str(tmp_path / "vtab")})], tmp_path)
    assert code == 1 and "lacks the split file test.txt" in only_line(text)
    assert not list(tmp_path.rglob("sensitivities.safetensors"))
