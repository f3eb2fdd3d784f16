"""What users of PTQD get wrong, through the command: one line each, no traceback, and nothing half written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from made import LDM, PIXELS, TINY, merged, pixel_folder, ptq4dm, tiny_unet, write_yaml

from paperkit.files.weights import read_safetensors, save_weights


class Danger:
    """What a pickle could run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good models and runs, and every kind of bad ones."""
    folder = tmp_path_factory.mktemp("bad")
    pixel_folder(folder / "good")
    write_yaml(folder / "tiny.yaml", merged(TINY, {"model": {"path": "good"}}))
    short = ("--reconstruction.weight_iterations", "0", "--reconstruction.step_iterations", "0")
    ptq4dm.here("train", "--config", "tiny.yaml", *short, "--name", "good", cwd=folder)
    tiny_unet(conditional=True).save_pretrained(folder / "conditional" / "unet")
    save_weights(folder / "narrow.safetensors", {"contexts": torch.zeros(3, 1, 10)})
    save_weights(folder / "no_null.safetensors", {"contexts": torch.zeros(3, 1, 12)})
    (folder / "empty").mkdir()
    (folder / "text.ckpt").write_text("no weights")
    torch.save({"state_dict": {}, "hook": Danger()}, folder / "code.ckpt")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(2, 3)}}, folder / "other.ckpt")
    for name in ("nan", "half", "class", "learned", "velocity", "keyless"):
        pixel_folder(folder / name)
    weights = "unet/diffusion_pytorch_model.safetensors"
    state, _ = read_safetensors(folder / "nan" / weights)
    nan = state | {"conv_in.bias": torch.full((8,), float("nan"))}
    save_weights(folder / "nan" / weights, nan, {"format": "pt"})
    keyless = {key: value for key, value in state.items() if key != "conv_out.bias"}
    save_weights(folder / "keyless" / weights, keyless, {"format": "pt"})
    (folder / "half" / weights).write_bytes((folder / "good" / weights).read_bytes()[:4000])
    config = folder / "class" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "StableCascadeUNet"}))
    UNet2DModel(**{**PIXELS, "out_channels": 6}).save_pretrained(folder / "learned" / "unet")
    DDIMScheduler(**LDM, prediction_type="v_prediction").save_pretrained(folder / "velocity" / "scheduler")
    for name in ("steps", "guidance", "foreign", "hand"):
        shutil.copytree(folder / "runs" / "ptq4dm" / "good", folder / "runs" / "ptq4dm" / name)
    for name, line in (("steps", ("steps: 4", "steps: 5")), ("guidance", ("eta: 1.0", "eta: 0.5")),
                       ("hand", ("weight_bits: 4", "wait_bits: 4"))):  # fmt: skip
        path = folder / "runs" / "ptq4dm" / name / "config.yaml"
        path.write_text(path.read_text().replace(*line))
    pixel_folder(folder / "another", seed=1)
    return folder


TRAIN = ["train", "--config", "tiny.yaml", "--name", "bad"]
CASES: dict[str, tuple[list[Any], str]] = {
    "no model": (["train", "--engine", "ldm"], "model.path names no float model"),
    "a model that is not there": ([*TRAIN, "--model.path", "nowhere"], "no model at nowhere"),
    "an empty folder": ([*TRAIN, "--model.path", "empty"], "empty is no folder of a network of diffusers"),
    "text": ([*TRAIN, "--model.path", "text.ckpt"], "text.ckpt is damaged or no checkpoint"),
    "code": ([*TRAIN, "--model.path", "code.ckpt"], "Danger, and a pickle that builds it can run code"),
    "another network's file": ([*TRAIN, "--model.path", "other.ckpt"], "other.ckpt"),
    "an unknown released model": ([*TRAIN, "--model.path", "other.ckpt", "--model.network", "ffhq"], "'ffhq'"),
    "weights cut off": ([*TRAIN, "--model.path", "half"], "half/unet cannot be read as a UNet2DModel"),
    "weights that are no numbers": ([*TRAIN, "--model.path", "nan"], "conv_in.bias"),
    "weights that are missing": ([*TRAIN, "--model.path", "keyless"], "does not fit its config.json: conv_out.bias"),
    "another class": ([*TRAIN, "--model.path", "class"], "StableCascadeUNet"),
    "a learned variance": ([*TRAIN, "--model.path", "learned"], "6 channels for 3"),
    "velocity": ([*TRAIN, "--model.path", "velocity"], "predicts v_prediction"),
    "contexts wanted": ([*TRAIN, "--model.path", "conditional"], "--model.contexts"),
    "narrow contexts": (
        [*TRAIN, "--model.path", "conditional", "--model.contexts", "narrow.safetensors"], "contexts of width 10",
    ),
    "guidance without null": (
        [*TRAIN, "--model.path", "conditional", "--model.contexts", "no_null.safetensors", "--sampler.guidance", "2"],
        "needs a context `null`",
    ),
    "guidance without a condition": ([*TRAIN, "--sampler.guidance", "3"], "no classes or contexts"),
    "1 bit": ([*TRAIN, "--quantization.weight_bits", "1"], "weight_bits"),
    "9 bits": ([*TRAIN, "--quantization.activation_bits", "9"], "activation_bits"),
    "16 bits among the candidates": ([*TRAIN, "--quantization.candidates", "[4, 16]"], "candidates"),
    "a budget beyond the candidates": ([*TRAIN, "--quantization.mean_bits", "9"], "mean_bits 9.0 is outside"),
    "steps that do not divide": ([*TRAIN, "--sampler.steps", "300"], "sampler.steps 300"),
    "eta": ([*TRAIN, "--sampler.eta", "2"], "sampler.eta 2"),
    "few images": ([*TRAIN, "--calibration.images", "2"], "2 images give 8 calls"),
    "few records": ([*TRAIN, "--calibration.records", "6"], "smaller than calibration.range_records 8"),
    "a batch beyond the records": ([*TRAIN, "--reconstruction.weight_batch", "30"], "reconstruction.weight_batch 30"),
    "no pairs": ([*TRAIN, "--calibration.pairs", "0"], "calibration.pairs 0"),
    "no such device": ([*TRAIN, "--accelerator", "tpu9"], "tpu9"),
    "statistics of other steps": (["eval", "--ckpt", "runs/ptq4dm/steps"], "steps"),
    "statistics of another eta": (["eval", "--ckpt", "runs/ptq4dm/guidance"], "eta"),
    "statistics of another model": (["eval", "--ckpt", "runs/ptq4dm/foreign", "--model.path", "another"], "model"),
    "a config changed by hand": (["eval", "--ckpt", "runs/ptq4dm/hand"], "wait_bits"),
    "weights outside of runs": (["eval", "--engine", "ldm", "--ckpt", "text.ckpt"], "lies in no run folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_line(case: str, folder: Path) -> None:
    words, expected = CASES[case]
    code = 2 if case in ("a config changed by hand",) else 1
    ended = ptq4dm.here(*words, cwd=folder, code=code)
    assert "Traceback" not in ended.err and expected in ended.err
    assert not (folder / "runs" / "ptq4dm" / "bad").exists()


def test_a_constant_activation_is_no_error(folder: Path) -> None:
    """Of a layer that is all zeros, as a fine-tuned network may have them."""
    unet = tiny_unet()
    with torch.no_grad():
        for parameter in unet.conv_in.parameters():
            parameter.zero_()
    unet.save_pretrained(folder / "constant" / "unet")
    ptq4dm.here("train", "--config", "tiny.yaml", "--model.path", "constant", "--name", "constant", cwd=folder)


def test_a_full_disk_keeps_what_is_done(folder: Path) -> None:
    words = ("train", "--config", "tiny.yaml", "--name", "full")
    assert "cannot write" in ptq4dm.child(*words, cwd=folder, limit=20_000, code=1).line
    ptq4dm.here("train", "--resume", "full", cwd=folder)
