"""Nothing in the kernels looks at sizes: what does not fit never reaches them, and nothing leaves them stale memory."""

import copy
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import made
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paperkit.errors import UserError
from ptq4dm.deployment import kernels
from ptq4dm.deployment.packed_folder import load_packed, save_packed
from ptq4dm.deployment.packed_layers import PackedLayer
from ptq4dm.deployment.packed_unet import PackedUNet, pack
from ptq4dm.deployment.program import GEGLU, Norm, Program, SizeError
from ptq4dm.method.calibration import Records
from ptq4dm.method.quant_model import (
    QuantConfig,
    activation_ranges,
    initialise_activation_ranges,
    initialise_ranges,
    quant_layers,
    quantize,
    set_activation_bits,
)

W8 = QuantConfig(8, 8, channel_wise_weights=True)
needs_kernels = pytest.mark.skipif(kernels.available() == ("torch",), reason="no compiler here")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def packed_unet(conditional: bool = False, unet: Any = None, config: QuantConfig = W8) -> PackedUNet:
    """A tiny packed U-Net."""
    network = quantize(made.tiny_unet(conditional) if unet is None else unet, config)
    records = Records(noise(8, 3, 8, 8), torch.arange(8) * 100, noise(8, 1, 12) if conditional else None)
    initialise_ranges(network, records, 8)
    return pack(network)


@pytest.mark.parametrize(
    ("conditional", "inputs"),
    [
        (False, (noise(1, 3, 7, 7), 5)),  # the way up gives 8 x 8 beside 7 x 7
        (False, (noise(1, 1, 8, 8), 5)),
        (False, (noise(1, 4, 8, 8), 5)),
        (False, (noise(1, 3, 8, 8), 5, noise(1, 2, 12))),  # no network for contexts
        (False, (noise(3, 8, 8), 5)),
        (True, (noise(1, 3, 8, 8), 5, noise(1, 1, 9))),
        (True, (noise(1, 3, 8, 8), 5, noise(1, 12))),
        (True, (noise(1, 3, 8, 8), 5)),
    ],
    ids=["odd", "one channel", "four channels", "context", "no batch", "narrow context", "flat context", "no context"],
)
def test_inputs_that_do_not_fit_are_refused(conditional: bool, inputs: tuple[Any, ...]) -> None:
    """As PyTorch refuses them, and the next call that fits still runs on the kernels."""
    packed = packed_unet(conditional)
    fitting = (noise(2, 3, 8, 8), 5, *([noise(2, 1, 12)] if conditional else []))
    expected = packed(*fitting).sample
    for _ in range(2):
        with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)):
            packed(*inputs)
    assert torch.equal(packed(*fitting).sample, expected)
    assert packed.engine().startswith("own C++") == (kernels.available() != ("torch",))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 4, 12), (1, 3, 2, 2), (1, 3, 7, 9)], ids=str)
def test_other_sizes_than_those_of_calibration(shape: tuple[int, ...]) -> None:
    """Batches, heights and widths by turns; a conditional U-Net takes odd ones too, module by module."""
    packed, context = packed_unet(True), noise(shape[0], 3, 12)
    expected = packed.network(noise(*shape), 5, encoder_hidden_states=context).sample
    for layout in (noise(*shape), noise(*shape).to(memory_format=torch.channels_last)):
        torch.testing.assert_close(packed(layout, 5, context).sample, expected, rtol=0.05, atol=0.05)
    transposed = noise(*shape).transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(packed(transposed, 5, context).sample, packed(noise(*shape), 5, context).sample)


@needs_kernels
@pytest.mark.parametrize(
    "written",
    [
        lambda p, x, a: p.layer(nn.Linear(9, 4), x),
        lambda p, x, a: p.layer(nn.Linear(8, 4), x, activation=GEGLU),
        lambda p, x, a: p.layer(nn.Conv2d(8, 4, 7), x),
        lambda p, x, a: p.layer(nn.Conv2d(16, 4, 1), x, a),
        lambda p, x, a: p.layer(nn.Linear(8, 8), x, residual=a),
        lambda p, x, a: p.layer(nn.Linear(8, 8), x, shift=a),
        lambda p, x, a: p.layer(nn.Linear(8, 8), x, norm=Norm.of(nn.GroupNorm(2, 4))),
        lambda p, x, a: p.layer(nn.Linear(8, 8), x, norm=Norm.of(nn.LayerNorm(4))),
        lambda p, x, a: p.layer(nn.Linear(8, 8), x, norm=Norm.of(nn.GroupNorm(2, 8), a)),
        lambda p, x, a: p.attention(x, x, x, 3, 1.0),
        lambda p, x, a: p.attention(x, x, a, 2, 1.0),
        lambda p, x, a: p.attention(x, p.values(2, 1, 5, 4), p.values(2, 1, 5, 4), 2, 1.0),
        lambda p, x, a: p.attention(x, p.values(2, 1, 0, 8), p.values(2, 1, 0, 8), 2, 1.0),
    ],
)
def test_steps_whose_sizes_disagree_are_not_written(written: Callable[..., Any]) -> None:
    found = kernels.kernels()
    assert found is not None
    program = Program(found)
    with pytest.raises(SizeError):
        written(program, program.values(2, 5, 5, 8), program.values(2, 4, 5, 8))


def test_wrong_number_of_inputs_of_a_layer() -> None:
    """13 and 16 inputs are filled up to the same size for the integer product."""
    with pytest.raises(ValueError, match="16 inputs of a layer that takes 13"):
        PackedLayer("linear", (4, 13), 8, (8,), False, False)(noise(2, 16))


def test_copies_and_other_types() -> None:
    """Programs hold addresses: a copy builds its own, and so does a network whose parameters were replaced."""
    packed, inputs = packed_unet(), (noise(2, 3, 8, 8), 5)
    expected = packed(*inputs).sample
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(*inputs).sample, expected)
    halved = packed.half()(*inputs).sample
    torch.testing.assert_close(halved, expected, rtol=0.05, atol=0.05)


def test_calls_from_several_threads() -> None:
    """Each sets the ranges of its step and fills the same memory, so they take turns."""
    unet = quantize(made.tiny_unet(), W8)
    records, ranges = Records(noise(8, 3, 8, 8), torch.arange(8) * 100), {}
    initialise_ranges(unet, records, 8)
    for width in (4, 8):
        set_activation_bits(unet, width)
        initialise_activation_ranges(unet, records, 8)
        ranges[width] = activation_ranges(unet)
    packed = pack(unet, ranges, {5: 8, 7: 4})
    calls = [(noise(2, 3, 8, 8) + i, 5 + i % 2 * 2) for i in range(8)]
    expected = [packed(*call).sample for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda call: packed(*call).sample, calls)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_border_before_the_quantiser() -> None:
    """diffusers pads some downsampling convolutions itself; a zero that is no code must not be written as one."""
    unet = type(made.tiny_unet())(**{**made.PIXELS, "downsample_padding": 0}).eval()
    network = quantize(unet, QuantConfig(8, 8, skip_bits=8))
    initialise_ranges(network, Records(noise(8, 3, 8, 8), torch.arange(8) * 100, None), 8)
    inputs = (noise(2, 3, 8, 8), 5)
    name = next(name for name in quant_layers(network) if "downsamplers" in name)
    for zero in (None, -7.0, 300.0):
        quantizer = quant_layers(network)[name].act_quantizer
        if zero is not None:
            quantizer.set_range(quantizer.delta.detach(), torch.tensor(zero))
        packed = pack(network)
        with torch.no_grad():
            expected = network(*inputs).sample
        torch.testing.assert_close(packed(*inputs).sample, expected, rtol=0.02, atol=0.02)


def test_one_step_for_all_images_of_a_schedule() -> None:
    packed = packed_unet()
    mixed = PackedUNet(packed.network, (8,), {5: 8, 7: 8})
    assert torch.equal(mixed(noise(2, 3, 8, 8), torch.tensor([5, 5])).sample, packed(noise(2, 3, 8, 8), 5).sample)
    with pytest.raises(UserError, match="2 time steps in one call"):
        mixed(noise(2, 3, 8, 8), torch.tensor([5, 7]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    save_packed(packed_unet(config=QuantConfig(4, 8, skip_bits=8)), path)
    return path


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("layers", "conv_in", "padding"), 5, "conv_in has padding 5, and the network's 1"),
        (("layers", "conv_in", "stride"), 0, "conv_in has stride 0"),
        (("layers", "conv_in", "padding"), -1, "conv_in has padding -1"),
        (("layers", "conv_in", "kind"), "linear", "conv_in has kind linear"),
        (("layers", "conv_in", "shape"), [10**6, 10**6], "conv_in has shape"),
        (("layers", "conv_in", "bias"), False, "conv_in has bias False"),
        (("layers", "conv_in", "act_bits"), [64], "2 to 8 are possible"),
        (("layers", "conv_in", "act_bits"), [8, 8], "act_delta has shape"),
        (("layers", "conv_in", "per_channel"), "no", "its description is damaged"),
        (("layers", "conv_in", "per_channel"), True, "has shape"),
        (("layers", "conv_in"), 3, "its description is damaged"),
        (("layers", "mid_block"), {}, "is no layer"),
        (("layers",), {}, "lacks"),
        (("widths",), [[8]], "widths are no bits"),
        (("schedule",), {"5": float("inf")}, "schedule"),
        (("settings", "block_out_channels"), [8, 16000], "and the network's"),
        (("settings", "layers_per_block"), 2, "and the network's"),
        (("settings", "norm_num_groups"), 3, "no UNet2DModel has these settings"),
        (("class",), ["UNet2DModel"], "is none of"),
    ],
)
def test_descriptions_that_lie(folder: Path, tmp_path: Path, place: tuple[str, ...], value: Any, message: str) -> None:
    """Sizes of the folder's own are compared with those of the network's layers, before memory is asked for."""
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=message):
        load_packed(tmp_path)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("conv_in.weight_codes", lambda x: x.long(), "int64"),
        ("conv_in.weight_codes", lambda x: x[:, :1].clone(), "has shape"),
        ("conv_in.weight_codes", None, "lacks"),
        ("conv_in.act_delta", lambda x: 0 * x, "act_delta of 0"),
        ("conv_in.act_delta", lambda x: x * float("nan"), "NaN"),
        ("conv_in.act_zero_point", lambda x: x + 0.5, "no whole number"),
        ("conv_in.weight_zero_point", lambda x: x + 1e30, "no whole number"),
    ],
)
def test_tensors_that_lie(folder: Path, tmp_path: Path, key: str, change: Any, message: str) -> None:
    state = load_file(folder / "model.safetensors")
    if change is None:
        del state[key]
    else:
        state[key] = change(state[key])
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=message):
        load_packed(tmp_path)


def test_codes_of_more_bits_than_told(folder: Path, tmp_path: Path) -> None:
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    narrow = next(name for name, form in config["layers"].items() if form["weight_bits"] == 4)
    config["layers"][narrow]["weight_bits"] = 2
    state[f"{narrow}.weight_codes"].fill_(0xFF)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="weight code 15 of 2 bits"):
        load_packed(tmp_path)
