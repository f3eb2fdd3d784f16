"""Every tier that this machine can run gives the integers of the plain form, whatever the widths and zeros."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bivit.deployment import kernels
from bivit.deployment.packed_blocks import packed_attention
from bivit.deployment.packed_layers import recast
from bivit.deployment.packed_linear import PackedLinear
from bivit.deployment.packed_model import FORMS
from bivit.method.attention import BinaryAttention, BlockAttention, WindowAttention
from bivit.method.attention_rules import BoolScores, NaiveScores
from bivit.method.binary_linear import RULES, BinaryLinear
from bivit.method.mlp import BinaryMlp
from bivit.method.softmax_aware import SoftmaxAware
from paperkit.errors import UserError
from paperkit.native import library
from paperkit.verification.reference_file import ReferenceFile

TIERS = kernels.available()
FILES = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BIVIT_TIER", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def quarters(x: Tensor) -> Tensor:
    """Numbers whose sums are exact, so that signs of outputs agree, zeros among them."""
    return (4 * x).round() / 4


def drawn(layer: BinaryLinear, bias: float = 2.0) -> BinaryLinear:
    layer.weight.normal_()
    layer.bias.copy_(quarters(bias * torch.randn(layer.out_features)))
    if layer.scaling_factor is not None:
        layer.scaling_factor.copy_(torch.randint(1, 4, layer.scaling_factor.shape) / 4)
        layer.scaling_factor[::3] *= -1
        layer.scale_checked = True
    return layer


def packed_twin(module: nn.Module) -> nn.Module:
    """The packed form of an attention or MLP, its layers drawn; both come out of the same numbers."""
    twin = recast(FORMS[type(module)], module)
    for name, part in module.named_children():
        if isinstance(part, BinaryLinear):
            setattr(twin, name, PackedLinear.of(drawn(part), name, ternary_inputs=name == "proj"))
    return twin.eval()


@pytest.mark.parametrize("zero", ["ternary", "plus"])
@pytest.mark.parametrize("size", [(64, 64), (100, 33), (384, 130), (2050, 70), (1, 1)], ids=str)
def test_linear(tier: str, size: tuple[int, int], zero: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = drawn(BinaryLinear(*size, RULES["pws"], zero=zero))  # type: ignore[arg-type]
    x = torch.randn(2, 9, size[0])
    x[0], x[1, 3] = x[0].round(), 0
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        torch.testing.assert_close(PackedLinear.of(layer)(x), layer(x), rtol=1e-5, atol=1e-4)
    x[1, 2, 0] = float("nan")
    out = PackedLinear.of(layer)(x)
    assert bool(out[1, 2].isnan().all()) and int(out.isnan().sum()) == size[1]


@pytest.mark.parametrize("name", ["packed_linear", "packed_linear_k100", "packed_linear_zeros"])
def test_linear_of_the_reference_files(tier: str, name: str) -> None:
    file = ReferenceFile.read(FILES / f"{name}.safetensors", ["packed_linear"])
    layer = BinaryLinear(file.config["in_features"], file.config["out_features"])
    layer.load_state_dict(dict(file.state))
    packed = PackedLinear.of(layer)
    assert torch.equal(packed.weight_bits, file.outputs["w_bits"])
    packed.scale.fill_(1)
    packed.bias.zero_()
    assert torch.equal(packed(file.inputs["x"]).int(), file.outputs["dot"])
    torch.testing.assert_close(PackedLinear.of(layer)(file.inputs["x"]), file.outputs["y"], rtol=1e-5, atol=1e-5)


def test_attention_of_the_reference_file(tier: str) -> None:
    file = ReferenceFile.read(FILES / "packed_attention.safetensors", ["packed_attention"])
    sums = packed_attention(*(file.inputs[name] for name in "qkv"))
    assert torch.equal(sums.int(), file.outputs["context"])


FORMS_OF_ATTENTION: dict[str, Callable[..., BinaryAttention]] = {
    "tokens": lambda **o: BinaryAttention(48, 4, **o),
    "whole words": lambda **o: BinaryAttention(192, 3, **o),
    "wide heads": lambda **o: BinaryAttention(144, 2, **o),
    "odd heads": lambda **o: BinaryAttention(21, 3, **o),
    "blocks": lambda **o: BlockAttention(24, 2, **o),
}


@pytest.mark.parametrize("zero", ["ternary", "plus"])
@pytest.mark.parametrize("scores", [SoftmaxAware, BoolScores, NaiveScores], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("form", FORMS_OF_ATTENTION)
def test_attention(tier: str, form: str, scores: type[nn.Module], zero: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros among q, k and v as well: biases and scales are quarters."""
    torch.manual_seed(0)
    attention = FORMS_OF_ATTENTION[form](scores=scores(), zero=zero).eval()
    twin = packed_twin(attention)
    for tokens in (1, 17, 70):
        shape = (2, 3, tokens) if form == "blocks" else (2, tokens)
        x = torch.randn(*shape, attention.qkv.in_features)
        expected = attention(x)
        for threads in (1, 2):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            torch.testing.assert_close(twin(x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scores", [SoftmaxAware, BoolScores, NaiveScores], ids=lambda kind: kind.__name__)
def test_window_attention(tier: str, scores: type[nn.Module], masked: bool) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(24, 3, (3, 4), scores=scores()).eval()
    attention.relative_position_bias_table.normal_()
    twin = packed_twin(attention)
    x = torch.randn(6, 12, 24)
    mask = torch.where(torch.rand(3, 12, 12) < 0.3, -100.0, 0.0) * (1 - torch.eye(12)) if masked else None
    torch.testing.assert_close(twin(x, mask), attention(x, mask), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("zero", ["ternary", "plus"])
def test_mlp_by_thresholds(tier: str, zero: str) -> None:
    """GELU rounds to -0 far below 0, which is no sign: large outputs of fc1 reach there."""
    torch.manual_seed(0)
    mlp = BinaryMlp(48, 100, RULES["pws"], zero=zero).eval()  # type: ignore[arg-type]
    twin = packed_twin(mlp)
    x = torch.randn(2, 9, 48)
    assert bool((nn.functional.gelu(mlp.fc1(x)) == 0).any())
    torch.testing.assert_close(twin(x), mlp(x), rtol=1e-5, atol=1e-4)


def test_float_inputs(tier: str) -> None:
    torch.manual_seed(0)
    layer = drawn(BinaryLinear(70, 9, RULES["pws"].float_inputs))
    x = torch.randn(3, 70)
    torch.testing.assert_close(PackedLinear.of(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_weights_without_a_sign(tier: str) -> None:
    """A constant row gives its bias; a weight that is its row's mean counts nothing."""
    torch.manual_seed(0)
    for rule in (RULES["pws"], RULES["pws"].float_inputs):
        layer = drawn(BinaryLinear(201, 5, rule))
        layer.weight[1] = 0.5
        layer.weight[2] = torch.arange(-100.0, 101.0)
        packed, x = PackedLinear.of(layer), torch.randn(3, 201)
        assert packed.zero_weights is not None and packed.zero_weights.tolist() == [[2, 100]]
        torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-4)
        assert torch.equal(packed(x)[:, 1], layer.bias[1].expand(3))


def test_what_is_loaded_or_moved_is_laid_out_anew(tier: str) -> None:
    torch.manual_seed(0)
    layers = [drawn(BinaryLinear(70, 9)) for _ in range(2)]
    packed, x = PackedLinear.of(layers[0]), torch.randn(3, 70)
    packed(x)
    packed.load_state_dict(PackedLinear.of(layers[1]).state_dict())
    torch.testing.assert_close(packed(x), layers[1](x), rtol=1e-5, atol=1e-4)
    assert packed.double()(x.double()).dtype == torch.float64
    torch.testing.assert_close(packed.float()(x), layers[1](x), rtol=1e-5, atol=1e-4)
    half = packed(x.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("rule", "weight", "says"),
    [
        ("reactnet", None, r"^fc cannot be packed: it has inputs 'threshold', and only signs"),
        ("pws", float("nan"), r"^fc cannot be packed: it holds weights that are not finite"),
        ("bireal", 0.0, r"^fc cannot be packed: 14 of 630 centred weights are exactly 0"),
    ],
)
def test_what_one_bit_cannot_hold(rule: str, weight: float | None, says: str) -> None:
    layer = drawn(BinaryLinear(70, 9, RULES[rule]))
    if weight is not None:
        layer.weight[3:5, :7] = weight
    with pytest.raises(UserError, match=says):
        PackedLinear.of(layer, "fc")


def test_a_tier_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIVIT_TIER", "sse9")
    with pytest.raises(UserError, match=r"^BIVIT_TIER=sse9 does not exist; known: vpopcnt, "):
        kernels.tier()
    monkeypatch.setattr(kernels, "cpu_features", lambda: frozenset({"avx2"}))
    monkeypatch.setenv("BIVIT_TIER", "avx2")
    with pytest.raises(UserError, match=r"^BIVIT_TIER=avx2: this processor lacks bmi1, "):
        kernels.tier()


def test_a_compiler_that_fails_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.delenv("BIVIT_TIER", raising=False)
    monkeypatch.setattr(kernels, "_library", lambda: library("bivit-none", kernels.SOURCES, flags=kernels.FLAGS))
    for name in ("_kernels", "_best"):
        monkeypatch.setattr(kernels, name, getattr(kernels, name).__wrapped__)
    torch.manual_seed(0)
    layer, x = drawn(BinaryLinear(70, 9)), torch.randn(3, 70)
    with pytest.warns(UserWarning, match=r"^bivit-none: no compiled kernel \(/nowhere/c\+\+: No such file"):
        out = PackedLinear.of(layer)(x)
    torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PackedLinear.of(layer)(x)
    assert kernels.available() == ("torch",) and kernels.tier() == "torch"
    monkeypatch.setenv("BIVIT_TIER", "portable")
    assert kernels.tier() == "torch"  # what is printed beside a figure is what runs
