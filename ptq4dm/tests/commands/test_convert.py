"""`ptq4dm convert` on every kind of file, there and back."""

from pathlib import Path

import pytest
import torch
from made import ptq4dm
from made_checkpoints import TINY, made_file

from ptq4dm.deployment.packed_folder import load_packed, save_packed
from ptq4dm.deployment.packed_unet import pack
from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.quant_model import QuantConfig, initialise_ranges, quantize
from ptq4dm.models.conversion import to_folder
from ptq4dm.models.latent_diffusion import build_unet
from ptq4dm.models.official_quantized import read_inputs, write_inputs, write_quantized
from ptq4dm.models.pipelines import load_pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float pipeline, calibration records, and a quantised file of it."""
    folder = tmp_path_factory.mktemp("convert")
    to_folder(made_file(folder / "model.ckpt", "cin"), folder / "float", TINY["cin"])
    torch.manual_seed(0)
    records = Records(torch.randn(40, 3, 8, 8), torch.randint(0, 1000, (40,)), torch.randn(40, 1, 12))
    write_inputs(folder / "imagenet_input_20steps.pth", records)
    unet = quantize(load_pipeline(folder / "float").unet, QuantConfig(8, 8))
    initialise_ranges(unet, records.shuffled(40))
    write_quantized(folder / "quantw8a8_ldm_brecq.pth", unet)
    torch.save({"y": predict(unet, records[:2]).detach()}, folder / "y.pth")
    return folder


def convert(*words: str, cwd: Path) -> str:
    return ptq4dm.here("convert", *words, cwd=cwd).out


def test_records_there_and_back(made: Path, tmp_path: Path) -> None:
    source = made / "imagenet_input_20steps.pth"
    assert "40 calibration records" in convert(str(source), "ours.safetensors", cwd=tmp_path)
    convert("ours.safetensors", "theirs.pth", cwd=tmp_path)
    one, other = read_inputs(source), read_inputs(tmp_path / "theirs.pth")
    assert all(torch.equal(other.tensors()[name], tensor) for name, tensor in one.tensors().items())


def test_a_quantised_file_as_packed_integers(made: Path, tmp_path: Path) -> None:
    """The zero points come from the same records, so the integers compute what was quantised."""
    words = ("--float", str(made / "float"), "--inputs", str(made / "imagenet_input_20steps.pth"))
    convert(str(made / "quantw8a8_ldm_brecq.pth"), "packed", *words, "--weight-bits", "8", cwd=tmp_path)
    packed, records = load_packed(tmp_path / "packed"), read_inputs(made / "imagenet_input_20steps.pth")[:2]
    wanted = torch.load(made / "y.pth", weights_only=True)["y"]
    found = packed(records.x, records.t, records.context).sample
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()  # the rest is in fp16, and codes may turn


def test_a_packed_network_keeps_its_heads(tmp_path: Path) -> None:
    """The churches model has one number of heads at all levels, which a plain `UNet2DModel` forgets."""
    unet = quantize(build_unet(TINY["churches"].unet).eval(), QuantConfig(8, 8))
    torch.manual_seed(0)
    records = Records(torch.randn(32, 4, 8, 8), torch.randint(0, 1000, (32,)))
    initialise_ranges(unet, records)
    save_packed(pack(unet), tmp_path, "fp32")
    found, wanted = load_packed(tmp_path)(records.x[:2], records.t[:2]).sample, predict(unet, records[:2]).detach()
    assert (found - wanted).abs().max() < 0.01 * wanted.abs().max()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none.ckpt", "out"), "no checkpoint at none.ckpt"),
        (("{made}/quantw8a8_ldm_brecq.pth", "out"), "is none of cin256-v2"),
        (("{made}/quantw8a8_ldm_brecq.pth", "out", "--float", "{made}/float"), "has an alpha|holds no zero points"),
        (("{made}/model.ckpt", "out", "--model", "sd"), "no model 'sd'"),
        (("{made}/model.ckpt", "out", "--model", "cin256-v2"), "does not fit"),
        (("{made}/model.ckpt", "out", "--weights", "best"), "--weights best"),
        (("{made}/y.pth", "out.safetensors"), "no list of 3-tuples"),
        (("{made}/float/unet", "out.ckpt"), "unet"),
    ],
)
def test_what_cannot_be_converted(words: tuple[str, ...], message: str, made: Path, tmp_path: Path) -> None:
    line = ptq4dm.refused("convert", *(word.replace("{made}", str(made)) for word in words), cwd=tmp_path)
    assert any(part in line for part in message.split("|")), line
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    line = ptq4dm.refused("convert", str(made / "model.ckpt"), "out", "--model", "cin256-v2", cwd=tmp_path)
    assert "has files already" in line and (tmp_path / "out" / "mine.txt").read_text() == "mine"
