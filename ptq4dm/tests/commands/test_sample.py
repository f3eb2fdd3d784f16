"""`ptq4dm sample` from everything that it is given: float, packed, a run, corrected or not."""

import json
from pathlib import Path

import pytest
import torch
from made import TINY as RUN
from made import merged, pixel_folder, ptq4dm, write_yaml
from made_checkpoints import TINY, made_file

from paperkit.files.arrays import read_npz
from ptq4dm.deployment.packed_folder import save_packed
from ptq4dm.deployment.packed_unet import pack
from ptq4dm.method.calibration import Records
from ptq4dm.method.noise_statistics import StatisticsAccumulator
from ptq4dm.method.quant_model import QuantConfig, initialise_ranges, quantize
from ptq4dm.models.conversion import to_folder
from ptq4dm.models.pipelines import load_pipeline

QUICK = ("--count", "2", "--device", "cpu", "--output", "out")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional pipeline, its U-Net packed, statistics of 4 steps with guidance 2, and a run on pixels."""
    folder = tmp_path_factory.mktemp("sample")
    to_folder(made_file(folder / "model.ckpt", "cin"), folder / "float", TINY["cin"])
    torch.manual_seed(0)
    records = Records(torch.randn(32, 3, 8, 8), torch.randint(0, 1000, (32,)), torch.randn(32, 1, 12))
    unet = quantize(load_pipeline(folder / "float").unet, QuantConfig(4, 4))
    initialise_ranges(unet, records)
    save_packed(pack(unet), folder / "packed")
    sums = StatisticsAccumulator()
    for t in (1, 251, 501, 751):
        eps = torch.randn(4, 3, 8, 8)
        sums.add(t, eps, eps * 1.1 + 0.05 + 0.1 * torch.randn_like(eps))
    sums.finish({"steps": 4, "eta": 0.0, "guidance": 2.0}).save(folder / "statistics.safetensors")
    sums.finish({"model": "other", "steps": 4, "eta": 1.0, "guidance": 1.0}).save(folder / "other.safetensors")
    pixel_folder(folder / "pixels")
    config = merged(RUN, {"model": {"path": str(folder / "pixels")}})
    write_yaml(folder / "tiny.yaml", config)
    ptq4dm.here("train", "--config", "tiny.yaml", "--name", "one", cwd=folder)
    return folder


def images(folder: Path) -> torch.Tensor:
    return torch.from_numpy(read_npz(folder / "out" / "samples.npz")["arr_0"]).float()


def draw(*words: str, cwd: Path) -> torch.Tensor:
    ptq4dm.here("sample", *words, *QUICK, cwd=cwd)
    return images(cwd)


def test_packed_near_to_float_and_corrected_apart(made: Path, tmp_path: Path) -> None:
    settings = ("--steps", "4", "--guidance", "2")
    float_images = draw("--ckpt", str(made / "float"), *settings, cwd=tmp_path)
    packed = draw("--ckpt", str(made / "float"), "--packed", str(made / "packed"), *settings, cwd=tmp_path)
    assert 0 < (packed - float_images).abs().mean() < 60
    statistics = ("--statistics", str(made / "statistics.safetensors"))
    words = ("--ckpt", str(made / "float"), "--packed", str(made / "packed"), *settings, *statistics)
    corrected = draw(*words, cwd=tmp_path)
    assert (corrected - packed).abs().max() > 1
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["correction"].endswith("statistics.safetensors") and "packed" in record["unet"]
    assert read_npz(tmp_path / "out" / "samples.npz")["arr_1"].tolist() == [0, 2]  # of four classes


def test_packed_needs_no_float_weights(made: Path, tmp_path: Path) -> None:
    """The folder may hold nothing of the U-Net but what `pack` wrote."""
    whole = draw("--ckpt", str(made / "float"), "--packed", str(made / "packed"), "--steps", "2", cwd=tmp_path)
    for name in ("vae", "scheduler", "class_embedding"):
        (tmp_path / "slim" / name).mkdir(parents=True)
        for file in (made / "float" / name).iterdir():
            (tmp_path / "slim" / name / file.name).write_bytes(file.read_bytes())
    assert torch.equal(draw("--ckpt", "slim", "--packed", str(made / "packed"), "--steps", "2", cwd=tmp_path), whole)


def test_a_run_is_sampled_as_it_was_made(made: Path, tmp_path: Path) -> None:
    run = str(made / "runs" / "ptq4dm" / "one")
    printed = ptq4dm.here("sample", "--ckpt", run, *QUICK, cwd=tmp_path).out
    assert "simulated quantisation" in printed and "correction of the run" in printed
    corrected, record = images(tmp_path), json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (record["sampling"]["steps"], record["sampling"]["eta"]) == (4, 1.0)
    plain = draw("--ckpt", run, "--correct", "false", cwd=tmp_path)
    assert not torch.equal(plain, corrected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ckpt", "{made}/none"), "no checkpoint at"),
        (("--ckpt", "{made}/float", "--steps", "5", "--statistics", "{made}/statistics.safetensors"), "steps"),
        (
            ("--ckpt", "{made}/float", "--steps", "4", "--statistics", "{made}/statistics.safetensors"),
            "guidance 2.0 do not fit guidance 3.0",
        ),
        (("--ckpt", "{made}/runs/ptq4dm/one", "--steps", "8"), "steps 4 do not fit steps 8"),
        (("--ckpt", "{made}/float", "--classes", "1,7"), "class 7 is outside 0 to 4"),
        (("--ckpt", "{made}/float", "--packed", "{made}/float"), "`ptq4dm pack` writes such"),
        (("--ckpt", "{made}/float", "--eta", "1.5"), "eta 1.5 is outside 0 to 1"),
        (("--ckpt", "{made}/packed"), "run"),
        (("--ckpt", "{made}/runs/ptq4dm/one", "--packed", "{made}/packed"), "pack the run again"),
        (
            ("--ckpt", "{made}/runs/ptq4dm/one", "--statistics", "{made}/other.safetensors"),
            "noise statistics of model other do not fit model",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled(words: tuple[str, ...], message: str, made: Path, tmp_path: Path) -> None:
    line = ptq4dm.refused("sample", *(w.replace("{made}", str(made)) for w in words), *QUICK, cwd=tmp_path)
    assert message in line and not (tmp_path / "out" / "samples.json").exists()
