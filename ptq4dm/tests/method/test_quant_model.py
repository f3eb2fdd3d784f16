"""Which layers, how many bits, in whose ranges."""

import copy

import pytest
import torch
from diffusers import UNet2DModel
from made import tiny_unet
from torch import nn

from paperkit.errors import UserError
from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.quant_model import (
    QuantConfig,
    activation_ranges,
    average_activation_ranges,
    config_of,
    initialise_activation_ranges,
    initialise_ranges,
    low_bit_layers,
    quant_layers,
    quantize,
    report,
    set_activation_bits,
    set_activation_ranges,
    set_quantized,
)


def records(conditional: bool = False, count: int = 32, seed: int = 0) -> Records:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(count, 1, 12, generator=generator) if conditional else None
    x, t = torch.randn(count, 3, 8, 8, generator=generator), torch.randint(0, 1000, (count,), generator=generator)
    return Records(x, t, context)


@torch.no_grad()
def error(unet: nn.Module, exact: torch.Tensor, given: Records) -> float:
    return (predict(unet, given) - exact).pow(2).mean().item()


def test_rules_of_a_conditional_network() -> None:
    unet = tiny_unet(conditional=True)
    plain = [name for name, module in unet.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    told = report(quantize(unet))
    assert told.bits["conv_in"] == told.bits["conv_out"] == told.bits["time_embedding.linear_1"] == (8, 8)
    assert told.bits["time_embedding.linear_2"] == (4, 8) and not told.unknown and not told.unmatched
    block = "mid_block.attentions.0"
    for name in ("proj_in", "proj_out", *[f"transformer_blocks.0.attn2.{p}" for p in ("to_q", "to_k", "to_out.0")]):
        assert told.bits[f"{block}.{name}"] == (4, 8)
    assert told.bits.keys() | told.left_float.keys() == set(plain)
    kept = {name.rpartition(".")[2] for name in told.left_float}
    assert kept == {"conv_shortcut", "conv"} and "down_blocks.0.downsamplers.0.conv" in told.left_float
    assert "up_blocks.0.upsamplers.0.conv" in told.bits
    assert set(low_bit_layers(unet)) == {name for name, bits in told.bits.items() if bits == (4, 8)}


def test_rules_of_an_unconditional_network() -> None:
    official, eight = quantize(tiny_unet()), quantize(tiny_unet(), QuantConfig(skip_bits=8))
    told = report(official)
    attention = [name for name in told.left_float if ".attentions." in name]
    assert attention and all(name.rpartition("attentions.")[2].split(".", 1)[1] for name in attention)
    assert any("float" in line and "attention" in line for line in told.lines())
    every = report(eight)
    assert not every.left_float and all(every.bits[name] == (8, 8) for name in told.left_float)
    assert set(low_bit_layers(eight)) == set(low_bit_layers(official))


def test_resampling_by_residual_blocks_is_quantised() -> None:
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, downsample_type="resnet",
        upsample_type="resnet", down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
    )  # fmt: skip
    assert "down_blocks.0.downsamplers.0.conv1" in quant_layers(quantize(unet))


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(
    "config",
    [QuantConfig(), QuantConfig(4, 8, True, skip_bits=8, attention_matmul_bits=8, shortcut_split=True)],
    ids=["official", "options"],
)
@torch.no_grad()
def test_off_is_float_and_more_bits_are_nearer(conditional: bool, config: QuantConfig) -> None:
    unet, given = tiny_unet(conditional), records(conditional)
    exact = predict(unet, given)
    quantize(unet, config)
    assert torch.equal(predict(unet, given), exact)
    initialise_ranges(unet, given)
    low = error(unet, exact, given)
    set_quantized(unet, weights=True, activations=False)
    assert 0 < error(unet, exact, given) < low + 1e-3
    set_quantized(unet, weights=False, activations=False)
    assert torch.equal(predict(unet, given), exact)
    eight = quantize(
        tiny_unet(conditional), QuantConfig(8, 8, True, attention_matmul_bits=config.attention_matmul_bits)
    )
    initialise_ranges(eight, given)
    assert error(eight, exact, given) < 0.2 * low < 0.2 * exact.pow(2).mean()


@torch.no_grad()
def test_state_dict_and_copies_carry_everything() -> None:
    unet, given = quantize(tiny_unet()), records()
    initialise_ranges(unet, given)
    other = quantize(tiny_unet(seed=1))
    other.load_state_dict(unet.state_dict())
    set_quantized(other, weights=True, activations=True)
    assert torch.equal(predict(other, given), predict(unet, given))
    assert torch.equal(predict(copy.deepcopy(unet), given), predict(unet, given))
    assert config_of(copy.deepcopy(unet)) == QuantConfig()


@torch.no_grad()
def test_one_set_of_weights_serves_several_bit_widths() -> None:
    unet, given = quantize(tiny_unet()), records()
    initialise_ranges(unet, given)
    ranges, at_eight = {8: activation_ranges(unet)}, predict(unet, given)
    set_activation_bits(unet, 4)
    initialise_activation_ranges(unet, given)
    ranges[4], at_four = activation_ranges(unet), predict(unet, given)
    assert report(unet).bits["conv_in"] == (8, 8) and report(unet).bits["time_embedding.linear_2"] == (4, 4)
    for bits, out in ((8, at_eight), (4, at_four), (8, at_eight)):
        set_activation_ranges(unet, ranges[bits])
        assert torch.equal(predict(unet, given), out)
    with pytest.raises(UserError, match="differ in"):
        set_activation_ranges(quantize(tiny_unet(conditional=True)), ranges[8])


@torch.no_grad()
def test_ranges_as_running_averages() -> None:
    unet, given = quantize(tiny_unet()), records(count=64)
    average_activation_ranges(unet, given)
    delta = quant_layers(unet)["conv_in"].act_quantizer.delta
    first, second = (part.max() - part.min() for part in (given.x[:32], given.x[32:]))
    torch.testing.assert_close(delta, (0.95 * first + 0.05 * second) / 255)
    out = predict(unet, given)
    assert torch.equal(predict(unet, given), out)  # it has stopped moving


def test_unknown_layers_are_named_and_stay_float() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(2, 3))
            self.inner = nn.Conv2d(3, 3, 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_in, self.up = nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 3, 1)
            self.strange, self.mixing = Strange(), nn.MultiheadAttention(4, 2)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.up(self.conv_in(x)) + self.strange.inner(x) * self.strange.table.sum()

    net, given = Net(), records(count=4)
    exact = predict(net, given).detach()
    told = report(quantize(net))
    kinds = {"up": "ConvTranspose2d", "strange": "Strange", "mixing": "MultiheadAttention"}
    assert told.unknown == {**kinds, "mixing.out_proj": "NonDynamicallyQuantizableLinear"}
    assert told.bits == {"conv_in": (8, 8), "strange.inner": (4, 8)}
    assert set(told.unmatched) == {"time_embedding.linear_1", "conv_out"}
    assert "unknown, left float: up (ConvTranspose2d)" in told.lines()
    initialise_ranges(net, given, count=4)
    assert 0 < error(net, exact, given) < exact.pow(2).mean()


def test_constant_activations_have_ranges() -> None:
    unet = tiny_unet()
    given = Records(torch.zeros(32, 3, 8, 8), torch.zeros(32, dtype=torch.long))
    with torch.no_grad():
        exact = predict(unet, given)
        initialise_ranges(quantize(unet, QuantConfig(8, 8, True)), given)
        assert error(unet, exact, given) < 0.01 * exact.pow(2).mean()


def test_what_cannot_be_quantised_is_one_line() -> None:
    for bits in (1, 9):
        with pytest.raises(UserError, match=f"weight_bits is {bits}; a quantiser has 2 to 8 bits"):
            QuantConfig(weight_bits=bits)
    with pytest.raises(UserError, match="scale method 'best'"):
        QuantConfig(scale_method="best")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no convolution or linear layer"):
        quantize(nn.Sequential(nn.ReLU()))
    with pytest.raises(UserError, match="not quantised"):
        report(tiny_unet())
    unet = quantize(tiny_unet())
    with pytest.raises(UserError, match="quantised already"):
        quantize(unet)
    with pytest.raises(UserError, match="31 calibration records; 32 are needed"):
        initialise_ranges(unet, records(count=31))
    given = records()
    given.x[3, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"quantizer: the tensor holds NaN"):
        initialise_ranges(unet, given)
    unused = quantize(nn.ModuleDict({"a": nn.Linear(2, 2)}))
    unused.forward = lambda x, t: x  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"did not reach 1 quantisers, first a\.act_quantizer"):
        initialise_ranges(unused, given[:4], count=4)
