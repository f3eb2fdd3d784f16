"""Real integers agree with the simulation, at every instruction set, and outlive their float weights."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import made
import pytest
import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from ptq4dm.deployment import kernels
from ptq4dm.deployment.packed_folder import file_sizes, load_packed, save_packed
from ptq4dm.deployment.packed_layers import PackedLayer, pack_nibbles, unpack_nibbles
from ptq4dm.deployment.packed_unet import PackedUNet, pack
from ptq4dm.deployment.program import Program
from ptq4dm.method.calibration import Records
from ptq4dm.method.quant_layer import QuantLayer
from ptq4dm.method.quant_model import (
    QuantConfig,
    activation_ranges,
    initialise_activation_ranges,
    initialise_ranges,
    quantize,
    set_activation_bits,
)
from ptq4dm.method.quantizer import UniformAffineQuantizer

TIERS = kernels.available()
W8 = QuantConfig(8, 8, channel_wise_weights=True)


def quantised(conditional: bool, config: QuantConfig) -> tuple[Any, tuple[Tensor, ...]]:
    """A tiny quantised U-Net, and inputs: sample, time steps, contexts."""
    unet = quantize(made.tiny_unet(conditional), config)
    draw = torch.Generator().manual_seed(1)
    x, t = torch.randn(8, 3, 8, 8, generator=draw), torch.randint(0, 1000, (8,), generator=draw)
    context = torch.randn(8, 1, 12, generator=draw) if conditional else None
    initialise_ranges(unet, Records(x, t, context), 8)
    return unet, (x[:3], t[:3], *([] if context is None else [context[:3]]))


def quant_layer(layer: nn.Module, x: Tensor, weight_bits: int = 8, channel_wise: bool = False) -> QuantLayer:
    """A layer with ranges of its weight and of `x`."""
    made_layer = QuantLayer(layer, UniformAffineQuantizer(weight_bits, channel_wise), UniformAffineQuantizer(8))  # type: ignore[arg-type]
    made_layer.weights_quantized = made_layer.inputs_quantized = True
    with torch.no_grad():
        made_layer(x)
    return made_layer


def through_kernels(layer: PackedLayer, x: Tensor) -> Tensor:
    """One layer alone as a program."""
    found = kernels.kernels()
    assert found is not None
    program = Program(found)
    start = program.values(len(x), x.shape[2], x.shape[3], x.shape[1], kept=True)
    end = program.layer(layer, start, kept=True)
    program.finish()
    program.view(start).copy_(x.permute(0, 2, 3, 1))
    program.run()
    return program.view(end).permute(0, 3, 1, 2).clone()


@pytest.mark.parametrize("tier", [tier for tier in TIERS if tier != "torch"])
@pytest.mark.parametrize("sizes", [(1, 3, 3, 1, 1), (7, 50, 3, 2, 1), (64, 96, 1, 1, 0), (30, 64, 3, 1, 1)], ids=str)
def test_every_tier_gives_the_same_sums(tier: str, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same input the integers are those of `torch._int_mm`; only float scaling rounds differently."""
    inputs, outputs, kernel, stride, padding = sizes
    torch.manual_seed(0)
    x = torch.randn(2, inputs, 9, 8)
    for channel_wise in (False, True):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        layer = quant_layer(conv, x, 8, channel_wise)
        packed = PackedLayer.of(layer, "layer")
        monkeypatch.setenv("PTQ4DM_TIER", tier)
        found, plain = through_kernels(packed, x), packed(x)
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-6 * float(plain.abs().max()))
        with torch.no_grad():
            simulated = layer(x)
        torch.testing.assert_close(found, simulated, rtol=0, atol=3e-6 * float(simulated.abs().max()))


@pytest.mark.parametrize("tier", TIERS)
def test_largest_codes_do_not_saturate(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """u8 255 times s8 127 throughout: pairs of products in 16 bits would give half of the sum."""
    if tier == "torch":
        pytest.skip("no compiler here")
    monkeypatch.setenv("PTQ4DM_TIER", tier)
    layer = PackedLayer("conv", (32, 64, 3, 3), 8, (8,), False, False, 1, 1)
    layer.weight_codes.fill_(255)
    layer.weight_zero_point.fill_(128)
    x = torch.full((1, 64, 6, 6), 255.0)
    assert torch.equal(through_kernels(layer, x)[0, :, 2, 2], torch.full((32,), 255.0 * 127 * 64 * 9))
    assert torch.equal(layer(x)[0, :, 2, 2], torch.full((32,), 255.0 * 127 * 64 * 9))


@pytest.mark.parametrize("zero", [-7.0, 300.0])
def test_border_of_a_zero_point_that_is_no_code(zero: float) -> None:
    """Then 0 is not on the grid: the border is 0 all the same, as in the simulation."""
    torch.manual_seed(0)
    layer = quant_layer(nn.Conv2d(3, 5, 3, padding=1), torch.randn(1, 3, 5, 5))
    layer.act_quantizer.set_range(torch.tensor(0.01), torch.tensor(zero))
    packed, x = PackedLayer.of(layer, "layer"), torch.randn(1, 3, 5, 5)
    assert packed.integers() is None
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-5)
    if TIERS != ("torch",):
        torch.testing.assert_close(through_kernels(packed, x), packed(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("tier", TIERS)
def test_unet_agrees_with_the_simulation(tier: str, conditional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to codes at a tie: rounding of norms may move single codes by one step, which later norms enlarge."""
    monkeypatch.setenv("PTQ4DM_TIER", tier)
    for config in (W8, QuantConfig(4, 8, skip_bits=8)):
        unet, inputs = quantised(conditional, config)
        packed = pack(unet)
        with torch.no_grad():
            expected, found = unet(*inputs).sample, packed(*inputs).sample
            unet_float = made.tiny_unet(conditional)(*inputs).sample
        assert packed.engine().startswith("own C++" if tier != "torch" else "torch._int_mm"), packed.engine()
        apart, noise = (found - expected).pow(2).mean(), (expected - unet_float).pow(2).mean()
        assert apart < 0.1 * noise
        assert (found - expected).abs().median() < 1e-2 * expected.std()


def test_float_network_runs_on_the_same_steps() -> None:
    """A network without integers shows that every other step is right: norms, attention, resampling, residuals."""
    if TIERS == ("torch",):
        pytest.skip("no compiler here")
    for conditional in (False, True):
        unet, (_, inputs) = made.tiny_unet(conditional), quantised(conditional, W8)
        engine = PackedUNet(unet, (8,))
        with torch.no_grad():
            expected = copy.deepcopy(unet)(*inputs).sample
            torch.testing.assert_close(engine(*inputs).sample, expected, rtol=1e-4, atol=1e-5)
        assert not engine.unsupported


def test_result_is_not_the_programs_memory() -> None:
    """With one channel its order is that of PyTorch's, and a copy is easily forgotten."""
    unet = made.tiny_unet()
    unet.conv_out, unet.conv_in = nn.Conv2d(8, 1, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
    engine, draw = PackedUNet(unet, (8,)), torch.Generator().manual_seed(0)
    first, second = (engine(torch.randn(1, 1, 8, 8, generator=draw), 501).sample for _ in range(2))
    assert not torch.equal(first, second)


def test_unknown_block_runs_module_by_module() -> None:
    """With its name in the engine's line, and the same result."""

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    unet, inputs = quantised(False, W8)
    packed = pack(unet)
    network: Any = packed.network
    network.conv_in = Doubled(network.conv_in)
    found = packed(*inputs).sample
    assert torch.equal(found, network(*inputs).sample)
    if TIERS != ("torch",):
        assert "Doubled" in packed.engine()


def test_nibbles() -> None:
    codes = torch.randint(0, 16, (3, 5, 3, 3), dtype=torch.uint8)
    packed = pack_nibbles(codes)
    assert packed.shape == (3, 23)
    assert torch.equal(unpack_nibbles(packed, codes.shape), codes)


def test_folder_holds_all_that_a_new_process_needs(tmp_path: Path) -> None:
    """No float weight of a quantised layer is in it; W4 codes are two a byte."""
    unet, inputs = quantised(False, QuantConfig(4, 8, skip_bits=8))
    packed = pack(unet)
    save_packed(packed, tmp_path / "packed", "fp32")
    torch.save({"inputs": inputs, "expected": packed(*inputs).sample}, tmp_path / "case.pt")
    script = (
        "import sys, torch; from ptq4dm.deployment.packed_folder import load_packed;"
        "case = torch.load(sys.argv[2], weights_only=True); unet = load_packed(sys.argv[1]);"
        "assert torch.equal(unet(*case['inputs']).sample, case['expected'])"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "packed", tmp_path / "case.pt"], check=True, timeout=120)
    sizes = file_sizes(packed)
    assert (tmp_path / "packed" / "model.safetensors").stat().st_size >= sizes["fp32"]
    assert sizes["fp16"] < sizes["fp32"] < sizes["float32"]
    for name, layer in packed.packed_layers().items():
        assert not hasattr(layer, "weight"), name


def test_mixed_schedule_takes_each_steps_ranges(tmp_path: Path) -> None:
    """One set of weights, ranges by width: each step gives what a network of that width alone gives."""
    unet, inputs = quantised(False, W8)
    ranges = {8: activation_ranges(unet)}
    alone = {8: pack(unet)}
    draw = torch.Generator().manual_seed(1)
    records = Records(torch.randn(8, 3, 8, 8, generator=draw), torch.randint(0, 1000, (8,), generator=draw))
    set_activation_bits(unet, 4)
    initialise_activation_ranges(unet, records, 8)
    ranges[4], alone[4] = activation_ranges(unet), pack(unet)
    save_packed(pack(unet, ranges, {7: 8, 900: 4}), tmp_path, "fp32")
    mixed = load_packed(tmp_path)
    for step, bits in {7: 8, 900: 4}.items():
        assert torch.equal(mixed(inputs[0], step).sample, alone[bits](inputs[0], step).sample)
    with pytest.raises(UserError, match="time step 8 is not in the bit schedule"):
        mixed(inputs[0], 8)


def test_tier_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTQ4DM_TIER", "amx")
    with pytest.raises(UserError, match="PTQ4DM_TIER=amx does not exist"):
        kernels.tier()


def test_damaged_folders(tmp_path: Path) -> None:
    """One line that names the file."""
    with pytest.raises(UserError, match=r"config\.json"):
        load_packed(tmp_path)
    unet, _ = quantised(False, W8)
    save_packed(pack(unet), tmp_path)
    config = (tmp_path / "config.json").read_text()
    for old, new, message in (
        ('"conv_in": {', '"conv_inn": {', "conv_inn"),
        ("UNet2DModel", "Pipeline", "class Pipeline"),
        ('"weight_bits": 8,\n   "act_bits"', '"weight_bits": 9,\n   "act_bits"', "bits"),
    ):
        (tmp_path / "config.json").write_text(config.replace(old, new, 1))
        with pytest.raises(UserError, match=message):
            load_packed(tmp_path)


def test_ranges_that_are_not_known() -> None:
    with pytest.raises(UserError, match="conv_in: its ranges are not known yet"):
        pack(quantize(made.tiny_unet(), W8))
