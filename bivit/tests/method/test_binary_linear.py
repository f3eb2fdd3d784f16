"""Binary linears of the paper and of the baselines against straightforward forms."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bivit.method.binary_linear import RULES, BinaryLinear, binary_linear_of
from bivit.method.elastic import Elastic
from bivit.method.reactnet import RPReLU, RSign
from bivit.method.sign import sign
from paperkit.errors import UserError


def run(layer: BinaryLinear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, gradient of the weight, of x) of sum(y * fixed numbers)."""
    x = x.clone().requires_grad_()
    y = layer(x)
    fixed = torch.linspace(-1, 1, y.numel()).view_as(y)
    of_weight, of_x = torch.autograd.grad((y * fixed).sum(), [layer.weight, x])
    return y.detach(), of_weight, of_x


def test_scale_is_of_the_uncentred_weight() -> None:
    layer = BinaryLinear(6, 2, RULES["mean"])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2, 3, 4, 5, 6], [1, -1, 1, -1, 1, 1]]))
    torch.testing.assert_close(layer.scale().flatten(), torch.tensor([3.5, 1.0]))
    assert layer.binary_weight()[0].tolist() == [-3.5, -3.5, -3.5, 3.5, 3.5, 3.5]


def test_bibert_passes_without_the_scale() -> None:
    """Its clamp passes at exactly +-1 and does not multiply by s; the paper's rule does both otherwise."""
    torch.manual_seed(0)
    ours, theirs = (BinaryLinear(8, 4, RULES[name].float_inputs) for name in ("mean", "bibert"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 8)
    (y1, w1, _), (y2, w2, _) = run(ours, x), run(theirs, x)
    torch.testing.assert_close(y1, y2)
    fixed = torch.linspace(-1, 1, 20).view(5, 4).T @ x
    torch.testing.assert_close(w2, fixed - fixed.mean(1, keepdim=True))
    scaled = ours.scale() * fixed
    torch.testing.assert_close(w1, scaled - scaled.mean(1, keepdim=True))
    edge = torch.tensor([-1.0, 1.0, 1.5], requires_grad=True)
    for gradient, kept in (("clamp", [1, 1, 0]), ("ste", [0, 0, 0]), ("identity", [1, 1, 1])):
        assert torch.autograd.grad(sign(edge, gradient).sum(), edge)[0].tolist() == kept


def test_bireal_gradient() -> None:
    x = torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.5, 1.0], requires_grad=True)
    assert torch.autograd.grad(sign(x, "bireal").sum(), x)[0].tolist() == [0, 0, 1.5, 2, 1, 0]


def test_bit_is_layer_wise() -> None:
    """One scale and one centre for the whole tensor, gradient 1; inputs get a shift and an alpha."""
    torch.manual_seed(0)
    layer = BinaryLinear(8, 4, RULES["bit"])
    x = torch.randn(5, 8)
    y, of_weight, _ = run(layer, x)
    w = layer.weight.detach()
    alpha = 2 * x.abs().mean()
    torch.testing.assert_close(y, F.linear(alpha * x.sign(), w.abs().mean() * (w - w.mean()).sign(), layer.bias))
    full = torch.linspace(-1, 1, 20).view(5, 4).T @ (alpha * x.sign())
    torch.testing.assert_close(of_weight, full - full.mean())


def test_xnor_scales_its_inputs_by_token() -> None:
    layer, x = BinaryLinear(8, 4, RULES["xnor"]), torch.randn(5, 8)
    w = layer.weight
    wanted = F.linear(x.sign() * x.abs().mean(1, keepdim=True), w.abs().mean(1, keepdim=True) * w.sign(), layer.bias)
    torch.testing.assert_close(layer(x), wanted)


def test_reactnet_layers() -> None:
    x = torch.randn(3, 5)
    moved = RSign(5)
    with torch.no_grad():
        moved.threshold.fill_(0.5)
    assert torch.equal(moved(x), (x - 0.5).sign())
    torch.testing.assert_close(RPReLU(5)(x), F.prelu(x, torch.tensor(0.25)))


def test_zero_rules() -> None:
    x = torch.tensor([0.0, -0.0, 2.0, -3.0])
    assert sign(x).tolist() == [0, 0, 1, -1] and sign(x, zero="plus").tolist() == [1, 1, 1, -1]
    assert sign(x.half(), zero="plus").dtype == torch.float16
    ternary, plus = (BinaryLinear(4, 3, RULES["pws"], zero) for zero in ("ternary", "plus"))
    plus.load_state_dict(ternary.state_dict())
    torch.testing.assert_close(plus(x), ternary(torch.tensor([1.0, 1.0, 2.0, -3.0])))


def test_nan_is_not_swallowed() -> None:
    assert sign(torch.tensor([1.0, float("nan")]))[1].isnan()
    assert BinaryLinear(2, 2)(torch.tensor([1.0, float("nan")])).isnan().all()


def test_sums_of_zero_are_zero() -> None:
    """Without a bias, as many +1 as -1 give exactly 0, in any order of summation and under autocast."""
    torch.manual_seed(0)
    layer, x = BinaryLinear(96, 64), torch.randn(50, 96)
    with torch.no_grad():
        layer.bias.zero_()
    dot = x.double().sign() @ layer.centred_weight().double().sign().T
    assert torch.equal(layer(x) == 0, dot == 0) and (dot == 0).any()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y.sign(), dot.sign().bfloat16())


def test_learned_scale_starts_once() -> None:
    """Zeros are set by the first pass, in the parameter that an optimiser holds; a learned scale is never touched."""
    layer = BinaryLinear(8, 4, RULES["pws"])
    held = layer.scaling_factor
    layer(torch.randn(2, 8))
    assert held is layer.scaling_factor and torch.equal(held, layer.weight.abs().mean(1, keepdim=True))
    with torch.no_grad():
        held.mul_(3)
    kept = held.clone()
    layer(torch.randn(2, 8))
    other = BinaryLinear(8, 4, RULES["pws"])
    other.load_state_dict(layer.state_dict())
    other(torch.randn(2, 8))
    assert torch.equal(layer.scaling_factor, kept) and torch.equal(other.scaling_factor, kept)


def test_change_of_rule_keeps_parameters() -> None:
    """What CLB and the two steps do: the same parameters under another rule, the scale kept."""
    first = binary_linear_of(torch.nn.Linear(8, 4, bias=False), RULES["pws"].float_weights)
    assert first.scaling_factor is None and first.bias.eq(0).all()
    second = binary_linear_of(first, RULES["pws"])
    assert second.weight is first.weight and second.bias is first.bias
    torch.testing.assert_close(second.scaling_factor, first.weight.abs().mean(1, keepdim=True))
    with torch.no_grad():
        second.scaling_factor.fill_(7)
    assert binary_linear_of(second, RULES["pws"].float_inputs).scaling_factor is second.scaling_factor


def test_elastic_gradient_of_alpha() -> None:
    """Against numbers: d alpha of the unsigned form is 1 above alpha, round(r) - r inside, over sqrt(numel)."""
    layer = Elastic(signed=False)
    layer.load_state_dict({"alpha": torch.tensor([2.0]), "ready": torch.tensor(True)})
    x = torch.tensor([-1.0, 0.5, 1.0, 1.5, 4.0], requires_grad=True)
    y = layer(x)
    assert y.tolist() == [0, 0, 0, 2, 2]  # exactly half of alpha is 0
    of_x, of_alpha = torch.autograd.grad(y.sum(), [x, layer.alpha])
    assert of_x.tolist() == [0, 1, 1, 1, 0]
    assert of_alpha.item() == pytest.approx((0 - 0.25 - 0.5 + 0.25 + 1) / 5**0.5)


def test_impossible_widths() -> None:
    with pytest.raises(UserError, match="0 inputs"):
        BinaryLinear(0, 3)
    assert replace(RULES["pws"], inputs="float") == RULES["pws"].float_inputs
