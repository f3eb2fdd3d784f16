"""One wrapped layer against the same arithmetic written out."""

import pytest
import torch
from torch import nn

from ptq4dm.method.adaround import AdaRoundQuantizer, learn_rounding
from ptq4dm.method.quant_layer import Quantised, QuantLayer
from ptq4dm.method.quantizer import UniformAffineQuantizer


def wrapped(layer: Quantised, split: int | None = None) -> QuantLayer:
    pairs = [(UniformAffineQuantizer(4, True), UniformAffineQuantizer(8, learned_step=True)) for _ in range(2)]
    return QuantLayer(layer, *pairs[0], split=None if split is None else (split, *pairs[1]))


LAYERS = [
    nn.Conv2d(6, 5, 3, padding=1),
    nn.Conv2d(6, 4, 3, stride=2, dilation=2, groups=2, bias=False),
    nn.Conv2d(6, 5, 3, padding=2, padding_mode="reflect"),
    nn.Conv2d(6, 5, 3, padding="same", padding_mode="circular"),
    nn.Linear(6, 5),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer.extra_repr()))
@torch.no_grad()
def test_input_then_weight(layer: Quantised) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 9) if isinstance(layer, nn.Conv2d) else torch.randn(2, 4, 6)
    quantised = wrapped(layer)
    assert torch.equal(quantised(x), layer(x)) and quantised.bits == (4, 8)
    quantised.weights_quantized = quantised.inputs_quantized = True
    out = quantised(x)
    kept = layer.weight.clone()
    layer.weight.copy_(quantised.weight_quantizer(kept))
    torch.testing.assert_close(out, layer(quantised.act_quantizer(x)))
    layer.weight.copy_(kept)
    quantised.inputs_quantized = False
    assert not torch.equal(quantised(x), out)


@torch.no_grad()
def test_shortcut_split_has_a_range_for_each_half() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 5, 1)
    layer.weight[:, 4:] *= 20
    x = torch.randn(2, 6, 4, 4) * torch.tensor([0.1] * 4 + [5.0] * 2)[:, None, None]
    whole, split = wrapped(layer), wrapped(layer, split=4)
    for quantised in (whole, split):
        quantised.weights_quantized = quantised.inputs_quantized = True
    exact = layer(x[:, :4].contiguous().new_zeros(2, 6, 4, 4).copy_(x))
    assert (split(x) - exact).pow(2).mean() < (whole(x) - exact).pow(2).mean()
    assert split.act_quantizer_0.delta > 10 * split.act_quantizer.delta
    assert len(learn_rounding(split)) == 2


def test_rounding_starts_at_the_nearest_step() -> None:
    layer = wrapped(nn.Linear(30, 20))
    layer.weights_quantized = True
    nearest = layer.quantized_weight()
    (rounding,) = learn_rounding(layer)
    assert isinstance(layer.weight_quantizer, AdaRoundQuantizer) and learn_rounding(layer) == [rounding]
    torch.testing.assert_close(layer.quantized_weight(), nearest)
    torch.testing.assert_close((rounding.codes(layer.weight) - rounding.zero_point) * rounding.delta, nearest)
    rounding.soft = True
    inside = (rounding.codes(layer.weight) > 0) & (rounding.codes(layer.weight) < 15)
    torch.testing.assert_close(layer.quantized_weight()[inside], layer.weight[inside])  # softly, the float weight
