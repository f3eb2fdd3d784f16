"""Properties of softmax-aware binarization that no reference file shows."""

import math

import pytest
import torch

from bivit.method.attention_rules import ElasticScores, NaiveScores, onehot_scores, scaled_bool_scores
from bivit.method.softmax_aware import (
    SoftmaxAware,
    best_scale,
    binarize_scores,
    fitted_beta,
    hamming_margin,
    optimal_binary,
    squared_error,
)
from paperkit.errors import UserError


def test_the_maximum_is_always_active() -> None:
    """One token, equal scores, and the row's largest for every beta."""
    assert SoftmaxAware()(torch.randn(1, 1, 1, 1)).item() == 1
    assert SoftmaxAware(1.0)(torch.full((1, 1, 3, 5), 0.3)).eq(1).all()
    logits = torch.randn(2, 3, 9, 9) * 4
    for beta in (0.2, 0.35, 0.5, 1.0):
        assert SoftmaxAware(beta)(logits).gather(-1, logits.argmax(-1, keepdim=True)).eq(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_binary(dtype: torch.dtype) -> None:
    """(b - p) + p rounds to b: nothing but 0 and 1 leaves the forward pass."""
    logits = (torch.randn(4, 64, 64) * 3).to(dtype).requires_grad_()
    assert set(SoftmaxAware()(logits).unique().tolist()) == {0.0, 1.0}


def test_threshold_needs_no_exponential() -> None:
    """a >= beta max(a) is l >= max(l) + ln(beta); the margins in Hamming distances."""
    logits = torch.randn(2, 2, 16, 40, dtype=torch.float64) * 2
    active = logits >= logits.amax(-1, keepdim=True) - math.log(4)
    assert torch.equal(SoftmaxAware()(logits) > 0, active)
    margins = {16: 2, 24: 3, 32: 3, 40: 4, 48: 4, 64: 5, 80: 6, 96: 6}
    assert {d: hamming_margin(d) for d in margins} == margins


def test_shift_invariance_of_the_gradient() -> None:
    """Through the softmax, gradients of a row's logits add up to 0; past it they do not, and |l| >= 1 gets none."""
    logits = torch.randn(3, 8, requires_grad=True)
    cotangent = torch.randn(3, 8)
    (through,) = torch.autograd.grad((SoftmaxAware()(logits) * cotangent).sum(), logits)
    assert through.sum(-1).abs().max() < 1e-6 and through.abs().max() > 1e-3
    (past,) = torch.autograd.grad((SoftmaxAware(backward="direct")(logits) * cotangent).sum(), logits)
    assert torch.equal(past, torch.where(logits.abs() < 1, cotangent, 0))


def test_algorithm_1_is_the_best_of_all_thresholds() -> None:
    """On sharp rows coordinate descent finds the best set; SAB is worse than it, and the all-ones row worst."""
    scores = (torch.randn(50, 12, dtype=torch.float64) * 3).softmax(-1)
    best = optimal_binary(scores, 20)
    ranked = scores.sort(-1, descending=True).values
    counts = torch.arange(1, 13, dtype=torch.float64)
    every = scores.square().sum(-1, keepdim=True) - ranked.cumsum(-1).square() / counts
    assert (best.error >= every.amin(-1) - 1e-12).all()
    sab = binarize_scores(scores)
    of_sab = squared_error(scores, sab, best_scale(scores, sab))
    assert best.error.mean() <= of_sab.mean() < every[:, -1].mean()
    assert 0.1 < fitted_beta(scores) < 0.6


def test_nan_is_not_swallowed() -> None:
    logits = torch.tensor([[0.0, float("nan"), 1.0]])
    assert SoftmaxAware()(logits).isnan().any() and NaiveScores()(logits).isnan().any()


def test_quantisers_without_a_positive_logit() -> None:
    logits = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]])
    assert scaled_bool_scores(logits).eq(0).all()
    assert torch.equal(onehot_scores(torch.tensor([[1.0, 1.0, 0.0]])), torch.tensor([[1.0, 0.0, 0.0]]))


def test_elastic_scores_start_at_four_times_the_mean() -> None:
    """Rows of softmax over M keys have mean 1 / M, whatever the logits."""
    layer = ElasticScores()
    layer(torch.randn(2, 3, 8, 16))
    assert layer.alpha.item() == pytest.approx(4 / 16)
    before = layer.alpha.item()
    layer(torch.randn(2, 3, 8, 4))
    assert layer.alpha.item() == before
    again = ElasticScores()
    again.load_state_dict(layer.state_dict())
    again(torch.randn(2, 3, 8, 4))
    assert again.alpha.item() == before


def test_impossible_options() -> None:
    for beta in (0.0, -1.0, 1.1):
        with pytest.raises(UserError, match=r"outside \(0, 1\]"):
            SoftmaxAware(beta)
    with pytest.raises(UserError, match="at least one round"):
        optimal_binary(torch.rand(2, 3), 0)
