"""Binary attention: every form against the map of all pairs; masks, the causal form, the fitted flag, the schedule."""

import pytest
import torch
from made import TINY, tokens
from torch import Tensor

from ecoformer.method.attention import EcoFormerAttention, ask_for_fit, fit_hashes, start_epoch
from ecoformer.method.hash_fit import FitOptions
from ecoformer.method.linear_attention import (
    attention_map,
    bias_value,
    causal_attention,
    explicit_attention,
    linear_attention,
    sdpa_attention,
)
from ecoformer.method.performer import favor_attention, orthogonal_features
from ecoformer.method.softmax_attention import chosen, softmax_attention
from ecoformer.models.pvt import PVTv2
from paperkit.errors import UserError

FIT = FitOptions(topk=4, iterations=3)


def codes(count: int = 150, bits: int = 7) -> Tensor:
    return torch.where(torch.randn(2, 2, count, bits) > 0, 1.0, -1.0)


def layer(**options: object) -> EcoFormerAttention:
    torch.manual_seed(0)
    return EcoFormerAttention(16, 2, 7, 5, fit=FIT, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["released", "global"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_linear_form_is_that_of_all_pairs(mode: str, causal: bool, masked: bool) -> None:
    h, v, mask = codes(), torch.randn(2, 2, 150, 8), None
    if masked:
        mask = torch.ones(2, 150, dtype=torch.bool)
        mask[0, 100:] = False
        h = h * mask[:, None, :, None]
    form = causal_attention if causal else linear_attention
    found, expected = form(h, h, v, 8.0, mode, mask), explicit_attention(h, h, v, 8.0, mode, mask, causal)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0, :, :100], expected[0, :, :100], rtol=1e-4, atol=1e-5)
    if mode == "global":
        torch.testing.assert_close(
            sdpa_attention(h, h, v, 8.0, mode, mask, causal)[1], expected[1], rtol=1e-4, atol=1e-5
        )


def test_global_weights_are_a_distribution_and_released_ones_are_not() -> None:
    weights, total = attention_map(codes(), codes(), 8.0, "global")
    assert (weights > 0).all()
    torch.testing.assert_close((weights / total).sum(-1), torch.ones(2, 2, 150))
    h = codes()
    weights, total = attention_map(h, h, 8.0, "released")
    assert (weights < 0).any() and ((weights / total).sum(-1) < 0.5).all()


def test_denominators_are_whole_numbers() -> None:
    """Any order of summation gives the same bits: the denominator of shuffled tokens is the same."""
    h, order = codes(3136, 16), torch.randperm(3136)
    one = linear_attention(h, h, torch.zeros(2, 2, 3136, 1), 17.0, "global")
    v = torch.ones(2, 2, 3136, 1)
    assert torch.equal(linear_attention(h, h, v, 17.0, "global"), torch.ones_like(v))
    assert torch.equal(linear_attention(h, h[:, :, order], v, 17.0, "global"), torch.ones_like(v)) and (one == 0).all()


def test_bias_values() -> None:
    assert [bias_value(b, "plus_one") for b in (7, 16)] == [8, 17]
    assert [bias_value(b, "pow2") for b in (7, 15, 16)] == [8, 16, 32]
    with pytest.raises(UserError, match="bias 16 leaves negative similarities between codes of 16 bits"):
        bias_value(16, 16)


@pytest.mark.parametrize("mode", ["released", "global"])
@pytest.mark.parametrize("count", [24, 150])
def test_causal_rows_do_not_change_with_later_tokens(mode: str, count: int) -> None:
    attention = layer(causal=True, bias_mode=mode)
    x = torch.randn(2, count, 16)
    attention(x)
    attention.eval()
    later = x.clone()
    later[:, 11:] = torch.randn(2, count - 11, 16)
    assert torch.equal(attention(x)[:, :11], attention(later)[:, :11])
    assert not torch.equal(attention(x)[:, 11:], attention(later)[:, 11:])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mode", ["released", "global"])
def test_padding_is_excluded_everywhere(causal: bool, mode: str) -> None:
    """A padded sample gives what the short one gives, whatever stands in the padding, at the fit too."""
    x, mask = torch.randn(2, 24, 16), torch.ones(2, 24, dtype=torch.bool)
    mask[:, 18:] = False
    perm = torch.arange(18)
    short, padded = layer(causal=causal, bias_mode=mode), layer(causal=causal, bias_mode=mode)
    expected, found = short(x[:, :18], perm=perm), padded(x, mask=mask, perm=perm)
    torch.testing.assert_close(found[:, :18], expected, rtol=1e-4, atol=1e-5)
    x[:, 18:] = 100
    torch.testing.assert_close(padded(x, mask=mask)[:, :18], expected, rtol=1e-4, atol=1e-5)


def test_all_parts_of_the_layer_learn() -> None:
    attention = layer()
    attention(torch.randn(2, 24, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in attention.parameters())


def test_unfitted_in_eval_is_refused_or_fitted_on_request() -> None:
    model = PVTv2(**TINY).eval()
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(UserError, match=r"the hash of block1\.0\.attn was never fitted; fit it with fit_hashes"):
        model(images)
    fit_hashes(model, images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model(images)
    assert not model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_training_fits_once_and_again_when_asked() -> None:
    attention = layer()
    attention(torch.randn(2, 24, 16))
    first = attention.ksh.anchor.clone()
    attention(torch.randn(2, 24, 16))
    assert torch.equal(attention.ksh.anchor, first)
    assert not start_epoch(attention, 0) and not start_epoch(attention, 1, refit_every=3)
    assert start_epoch(attention.eval(), 3, refit_every=3)  # the released recipe trains in eval mode
    attention(torch.randn(2, 24, 16))
    assert attention.ksh.is_fitted and not torch.equal(attention.ksh.anchor, first)
    ask_for_fit(attention)
    assert not attention.ksh.is_fitted


def test_too_few_tokens_are_named() -> None:
    with pytest.raises(UserError, match="the first sample has 4 tokens and the hash 5 supports"):
        layer()(torch.randn(1, 4, 16))
    with pytest.raises(UserError, match="cannot be fitted: its query-key vectors are NaN"):
        layer()(torch.full((1, 24, 16), torch.nan))


def test_backends() -> None:
    x = torch.randn(2, 24, 16)
    outputs = [
        layer(bias_mode="global", backend=backend)(x, perm=torch.arange(24))
        for backend in ("linear", "explicit", "sdpa")
    ]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[0], outputs[2], rtol=1e-4, atol=1e-5)
    for attention in (layer().fast_attention, layer(bias_mode="global").fast_attention):
        assert (attention.chosen(4), attention.chosen(49)) == ("explicit", "linear")
    with pytest.raises(UserError, match="backend 'sdpa' needs bias_mode 'global'"):
        layer(backend="sdpa")
    with pytest.raises(UserError, match="power 2 needs bias_mode 'global'"):
        layer(power=2)
    with pytest.raises(UserError, match="N x N attention mask has no linear form"):
        layer()(x, attn_mask=torch.ones(24, 24))


def test_softmax_takes_explicit_for_small_maps_and_sdpa_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = torch.randn(1, 2, 49, 8), torch.randn(1, 2, 784, 8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.no_grad():
            assert (chosen(few, few), chosen(many, few), chosen(many, many)) == ("explicit", "sdpa", "sdpa")
            fused = torch.nn.functional.scaled_dot_product_attention(few, few, few)
            monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # explicit does not call it
            torch.testing.assert_close(softmax_attention(few, few, few), fused)
        assert chosen(few, few) == "sdpa"  # with gradients the map would be kept
        torch.set_num_threads(1)
        with torch.no_grad():
            assert chosen(few, few) == "sdpa"
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(UserError, match="backend 'linear' of a softmax attention is none of auto, explicit, sdpa"):
        softmax_attention(few, few, few, backend="linear")


def test_autocast_keeps_every_code() -> None:
    attention, x = layer(), torch.randn(2, 24, 16)
    attention(x)
    u = tokens(2, 2, 24, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = attention.ksh(u)
    assert torch.equal(inside, attention.ksh(u)) and inside.dtype == torch.float32


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_network_in_half_precision(kind: torch.dtype) -> None:
    attention, x = layer().to(kind), torch.randn(2, 24, 16, dtype=kind)
    assert attention(x).dtype == kind and torch.isfinite(attention.eval()(x)).all()


def test_performer_approaches_softmax_with_many_features() -> None:
    q, k, v = (torch.randn(1, 1, 12, 8) * 0.5 for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    found = favor_attention(q, k, v, orthogonal_features(4096, 8, torch.Generator().manual_seed(0)))
    assert (found - expected).abs().max() < 0.05


def test_a_fit_that_fails_leaves_the_hashes_as_they_were() -> None:
    layer = EcoFormerAttention(32, 2, supports=8, fit="adam").eval()
    fit_hashes(layer, torch.randn(2, 20, 32))
    before = {key: value.clone() for key, value in layer.ksh.state_dict().items()}
    with pytest.raises(UserError, match="support"):
        fit_hashes(layer, torch.randn(2, 4, 32))
    assert layer.ksh.is_fitted and not layer.fit_in_eval
    assert all(torch.equal(value, before[key]) for key, value in layer.ksh.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"lr": float("nan")}, {"iterations": 2.5}, {"topk": 0}, {"momentum": 2.0}]
)
def test_options_of_a_fit_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        EcoFormerAttention(32, 2, fit=options)


def test_tokens_that_are_none_and_tokens_that_are_not_finite() -> None:
    layer = EcoFormerAttention(32, 2, supports=8).eval()
    fit_hashes(layer, torch.randn(2, 20, 32))
    with pytest.raises(UserError, match="batch, tokens, channels"):
        layer(torch.randn(2, 4, 5, 32))
    x = torch.randn(2, 20, 32)
    x[1, 3, 5] = float("nan")
    with torch.no_grad():
        by_kernel = layer(x)
    for out in (by_kernel, layer(x)):  # with gradients the plain form
        assert out[0].isfinite().all() and out[1].isnan().any()
