"""Mask features at a level's size, and the thresholds of masks."""

import pytest
import torch
from torch.nn import functional as F

from faseg.method.prediction_heads import forbidden, resized_features


@pytest.mark.parametrize("size", [(2, 3), (4, 6), (8, 12), (16, 24), (5, 8), (8, 24), (3, 4)])
def test_resizing_is_bilinear(size: tuple[int, int]) -> None:
    """Even ratios, ratio 1, odd ones and unequal ones."""
    torch.manual_seed(0)
    features = torch.randn(2, 5, 16, 24, dtype=torch.float64, requires_grad=True)
    found = resized_features(features, size)
    assert not found.requires_grad
    torch.testing.assert_close(found, F.interpolate(features.detach(), size, mode="bilinear").flatten(2))


@pytest.mark.parametrize("threshold", [0.0, 0.15, 0.5])
def test_threshold_is_of_probabilities(threshold: float) -> None:
    logits = torch.linspace(-6, 6, 101)
    assert torch.equal(forbidden(logits, threshold), logits.sigmoid() < threshold)
